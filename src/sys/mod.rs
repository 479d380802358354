//! Every `unsafe` and raw system call of the program.

pub mod beneath;
