//! What a new pod is given for itself, before it starts: chosen here, with plugins asked where they have a say. A pod whose
//! plugin takes its time, or is not there yet, holds nobody up.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use tokio::task::{AbortHandle, JoinSet};
use tracing::info;

use super::manager::{Manager, Running};
use crate::pod::{
    Grants, Rejection,
    desired::{DesiredPod, SourceId, SourcedPod},
    devices::Question,
    topology::reject,
};

/// Why a pod waits whose plugin has not answered yet.
const ASKED: &str = "its device plugin is being asked";

/// Why a plugin did not answer as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceTrouble {
    /// In upstream's words.
    pub message: String,
    /// It is gone: another that takes its place can be asked.
    pub gone: bool,
}

/// What comes of being given something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Granting {
    /// All that the pod asked for; durable with its record.
    Given(Grants),
    /// Something is being found out, or others are about to leave what it asks for: which of it.
    Wait(String),
}

/// A new pod whose plugins are being asked.
#[derive(Debug)]
struct Asking {
    /// The pod as it was when they were asked.
    pod: Arc<SourcedPod>,
    /// What plugins said so far, question by question.
    answers: Vec<Vec<String>>,
    /// What was chosen: nobody else gets it while it is made ready.
    chosen: Option<Grants>,
    /// What came of that.
    allocated: Option<Result<Grants, DeviceTrouble>>,
    under_way: Option<AbortHandle>,
}

/// What a plugin said.
pub(super) enum Answer {
    Preferred(Result<Vec<String>, DeviceTrouble>),
    Allocated(Result<Grants, DeviceTrouble>),
}

/// All new pods whose plugins are being asked.
#[derive(Default)]
pub(super) struct Granter {
    asking: BTreeMap<String, Asking>,
    tasks: JoinSet<(String, Answer)>,
}

impl Granter {
    /// Resolves when a plugin has answered, and something can be decided anew; never while none is asked. Cancel-safe.
    pub(super) async fn answered(&mut self) {
        loop {
            match self.tasks.join_next().await {
                Some(Ok((uid, answer))) => {
                    self.take(&uid, answer);
                    return;
                }
                // Nobody waits for it any more.
                Some(Err(error)) if error.is_cancelled() => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "asking a device plugin ended abnormally");
                    self.asking
                        .retain(|_, asking| asking.under_way.as_ref().is_none_or(|task| task.id() != error.id()));
                    return;
                }
                None => return std::future::pending().await,
            }
        }
    }

    fn take(&mut self, uid: &str, answer: Answer) {
        let Some(asking) = self.asking.get_mut(uid) else { return };
        asking.under_way = None;
        match answer {
            Answer::Preferred(Ok(ids)) => asking.answers.push(ids),
            Answer::Preferred(Err(trouble)) => asking.allocated = Some(Err(trouble)),
            Answer::Allocated(allocated) => asking.allocated = Some(allocated),
        }
    }

    /// Whether a plugin is being asked for this pod.
    pub(super) fn is_asking(&self, uid: &str) -> bool {
        self.asking.get(uid).is_some_and(|asking| asking.under_way.is_some())
    }

    /// Forgets pods that nobody wants any more.
    pub(super) fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.asking.retain(|uid, asking| {
            let kept = wanted(uid);
            if !kept && let Some(task) = &asking.under_way {
                task.abort();
            }
            kept
        });
    }

    /// What is promised to pods other than `uid`.
    fn promised<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Grants> {
        let others = self.asking.iter().filter(move |(other, _)| *other != uid);
        others.filter_map(|(_, asking)| asking.chosen.as_ref())
    }
}

impl Manager {
    /// Resources that a static pod waits for a plugin to offer. Nobody would try again for it, other than for a pod that a
    /// scheduler has put here: that is judged as upstream judges it.
    pub(super) fn awaited(&self, desired: &DesiredPod) -> Vec<String> {
        if desired.source == SourceId::Api { Vec::new() } else { self.hosts.awaited_devices(&desired.pod.pod) }
    }

    /// Gives a new pod what it asks for.
    ///
    /// # Errors
    /// It cannot be given.
    pub(super) fn give(&mut self, desired: &DesiredPod, pod: &Pod) -> Result<Granting, Rejection> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let same = |asking: &&Asking| asking.pod == desired.pod;
        if self.granter.asking.get(&uid).is_some_and(|asking| !same(&asking)) {
            self.granter.keep(|other| other != uid);
        }
        let answers = match self.granter.asking.get_mut(&uid) {
            Some(Asking { under_way: Some(_), .. }) => return Ok(Granting::Wait(ASKED.to_owned())),
            Some(asking) => match asking.allocated.take() {
                None => std::mem::take(&mut asking.answers),
                Some(allocated) => {
                    self.granter.asking.remove(&uid);
                    match allocated {
                        Ok(grants) => return Ok(Granting::Given(grants)),
                        // The plugin that is there now takes the place of the one that was asked, and is asked anew.
                        Err(trouble) if trouble.gone && desired.source != SourceId::Api => Vec::new(),
                        Err(trouble) => return Err(reject(trouble.message)),
                    }
                }
            },
            None => Vec::new(),
        };
        let of = |running: &Running| running.record.grants.clone();
        let here = self.running.values().filter(|running| running.takes_room());
        let (staying, going): (Vec<&Running>, Vec<&Running>) = here.partition(|running| !running.is_going());
        let kept: Vec<Grants> = staying.into_iter().map(of).chain(self.kept_grants()).collect();
        let leaving: Vec<Grants> = going.into_iter().map(of).filter(|grants| !grants.is_empty()).collect();
        let beside = |leaving: &[Grants]| {
            let taken: Vec<&Grants> = kept.iter().chain(leaving).chain(self.granter.promised(&uid)).collect();
            self.hosts.grant(pod, &taken, &answers)
        };
        let (grants, question) = match beside(&leaving) {
            Ok(granted) => granted,
            // There is enough as soon as those are gone.
            Err(rejection) if !leaving.is_empty() && beside(&[]).is_ok() => {
                return Ok(Granting::Wait(format!("pods that end will leave what it asks for: {}", rejection.message)));
            }
            Err(rejection) => {
                self.granter.asking.remove(&uid);
                return Err(rejection);
            }
        };
        if question.is_none() && grants.containers.values().all(|grant| grant.devices.is_empty()) {
            self.granter.asking.remove(&uid);
            return Ok(Granting::Given(grants));
        }
        self.ask(desired, pod, answers, grants, question);
        Ok(Granting::Wait(ASKED.to_owned()))
    }

    fn ask(
        &mut self,
        desired: &DesiredPod,
        pod: &Pod,
        answers: Vec<Vec<String>>,
        grants: Grants,
        question: Option<Question>,
    ) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let (hosts, key) = (self.hosts.clone(), uid.clone());
        let chosen = question.is_none().then(|| grants.clone());
        let task = match question {
            Some(question) => self.granter.tasks.spawn(async move {
                let answer = hosts.preferred_devices(question).await;
                (key, Answer::Preferred(answer))
            }),
            None => {
                info!(pod = desired.full_name, uid, "devices are made ready");
                let pod = pod.clone();
                self.granter.tasks.spawn(async move {
                    let answer = hosts.allocate_devices(pod, grants).await;
                    (key, Answer::Allocated(answer))
                })
            }
        };
        let pod = desired.pod.clone();
        self.granter.asking.insert(uid, Asking { pod, answers, chosen, allocated: None, under_way: Some(task) });
    }

    /// What plugins offer has changed: tells the pods that have devices, and says whether a new pod may have waited for it.
    pub fn devices_changed(&mut self) -> bool {
        let has_devices = |running: &&Running| {
            let grants = &running.record.grants;
            !running.rejected && grants.containers.values().any(|grant| !grant.devices.is_empty())
        };
        for running in self.running.values().filter(has_devices) {
            running.wanted.send_modify(|wanted| wanted.devices += 1);
        }
        self.waits()
    }
}
