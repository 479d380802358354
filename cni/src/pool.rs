//! Sockets kept open between operations.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

use crate::netlink::{Family, Socket};

/// Sockets that are lent to one operation at a time, so that attaches on many threads share neither a lock nor
/// the cost of opening one.
#[derive(Debug)]
pub(crate) struct Pool {
    family: Family,
    idle: Mutex<Vec<Socket>>,
}

/// As many as there may be busy cores with something to gain from it; more are opened when needed and closed after.
const KEPT: usize = 8;

impl Pool {
    pub(crate) fn new(family: Family) -> Pool {
        Pool { family, idle: Mutex::new(Vec::new()) }
    }

    pub(crate) fn take(&self) -> io::Result<Lent<'_>> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let socket = match idle {
            Some(socket) => socket,
            None => Socket::open(self.family)?,
        };
        Ok(Lent { pool: self, socket: Some(socket) })
    }
}

/// A socket of a [`Pool`], given back when dropped.
pub(crate) struct Lent<'a> {
    pool: &'a Pool,
    socket: Option<Socket>,
}

impl Deref for Lent<'_> {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.socket.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Socket {
        self.socket.as_mut().expect("present until dropped")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(mut socket) = self.socket.take()
            && socket.rest()
        {
            let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < KEPT {
                idle.push(socket);
            }
        }
    }
}
