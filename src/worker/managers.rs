//! The CPU, memory and topology managers of this node: what a new pod is given for itself, and what is left for everybody.

use std::{collections::BTreeMap, path::Path};

use k8s_openapi::api::core::v1::Pod;

use super::sysfs::{self, TopologyError};
use crate::{
    api::{
        qos::{QosClass, qos_class},
        quantity::Quantity,
        resources::{CPU, MEMORY, Resources},
    },
    config::NodeConfig,
    pod::{
        Grants, Rejection,
        resize::asks_for_other,
        topology::{
            Amounts, CpuManager, Cpus, MemoryManager, NumaNodes, Provider, TopologyOptions, TopologyPolicy, grant,
            is_memory,
        },
    },
};

/// Why the managers cannot start; upstream's node agent does not start then, either.
#[derive(Debug, thiserror::Error)]
pub enum ManagersError {
    /// The machine is not known.
    #[error("read the topology of the machine")]
    Topology(#[from] TopologyError),
    /// `cpuManagerPolicy: static` does not go with the machine.
    #[error("cpuManagerPolicy static: {0}")]
    Cpu(String),
    /// `memoryManagerPolicy: Static` does not go with the machine.
    #[error("memoryManagerPolicy Static: {0}")]
    Memory(String),
    /// More NUMA nodes than the topology manager is allowed to deal with.
    #[error("topologyManagerPolicy: unsupported on machines with more than {0} NUMA Nodes")]
    Nodes(u32),
}

/// The managers.
#[derive(Debug)]
pub struct Managers {
    /// Processors that were online at the start.
    online: Cpus,
    numa: NumaNodes,
    options: TopologyOptions,
    cpu: Option<CpuManager>,
    memory: Option<MemoryManager>,
}

impl Managers {
    /// Looks at the machine, as far as it matters. `root` is `/sys` outside of tests, `memory` all of the machine's in bytes.
    pub fn open(config: &NodeConfig, root: &Path, memory: u64) -> Result<Managers, ManagersError> {
        let wanted = &config.managers;
        let online = sysfs::online(root)?;
        let mut managers =
            Managers { online, numa: NumaNodes::default(), options: wanted.topology, cpu: None, memory: None };
        if wanted.cpu.is_none() && wanted.memory.is_none() && wanted.topology.policy == TopologyPolicy::None {
            return Ok(managers);
        }
        let machine = sysfs::machine(root, memory)?;
        if wanted.topology.policy != TopologyPolicy::None && machine.numa.all().count() > wanted.max_numa_nodes {
            return Err(ManagersError::Nodes(wanted.max_numa_nodes));
        }
        if let Some(options) = wanted.cpu {
            // A part of a processor cannot be kept.
            let milli = config.reserved.get(CPU).map_or(0, Quantity::milli);
            let count = usize::try_from(milli).unwrap_or(0).div_ceil(1000);
            let (named, policy) = (wanted.reserved_cpus.clone(), wanted.topology.policy);
            let manager = CpuManager::new(machine.cpus.clone(), options, count, named, policy);
            managers.cpu = Some(manager.map_err(ManagersError::Cpu)?);
        }
        if let Some(reserved) = &wanted.memory {
            let kept = kept(&config.reserved, wanted.eviction.of(memory));
            let manager = MemoryManager::new(&machine, reserved, &kept);
            managers.memory = Some(manager.map_err(ManagersError::Memory)?);
        }
        managers.numa = machine.numa;
        Ok(managers)
    }

    /// The machine's NUMA nodes, where anything is decided by them.
    pub fn numa(&self) -> &NumaNodes {
        &self.numa
    }

    /// What a new pod is given for itself, beside pods that have `taken`; `devices` among that.
    ///
    /// # Errors
    /// There is not enough, or not where the topology manager wants it.
    pub fn grant(&self, pod: &Pod, taken: &[&Grants], devices: Option<&dyn Provider>) -> Result<Grants, Rejection> {
        let cpus = self.cpu.as_ref().map(|manager| manager.provider(granted(taken)));
        let memory = self.memory.as_ref().map(|manager| manager.provider(taken.to_vec()));
        let cpus = cpus.as_ref().map(|cpus| cpus as &dyn Provider);
        let providers = [devices, cpus, memory.as_ref().map(|memory| memory as _)];
        let providers: Vec<&dyn Provider> = providers.into_iter().flatten().collect();
        grant(pod, &self.numa, self.options, &providers)
    }

    /// What containers without processors of their own run on, when pods have `taken`. `None` as long as nobody has any and
    /// nobody can get any: they run wherever the kernel lets them.
    pub fn shared(&self, taken: &[&Grants]) -> Option<Cpus> {
        let granted = granted(taken);
        match &self.cpu {
            Some(manager) => Some(manager.shared(&granted)),
            None if granted.is_empty() => None,
            // Given out by an agent with another policy: exclusive all the same.
            None => Some(self.online.difference(&granted)).filter(|shared| !shared.is_empty()),
        }
    }

    /// What is odd about what pods have been given by an earlier agent; a sentence each, for the log.
    pub fn oddities(&self, grants: &Grants) -> Vec<String> {
        let mut found = Vec::new();
        let cpus = grants.cpus();
        let gone = cpus.difference(&self.online);
        if !gone.is_empty() {
            found.push(format!("its processors {gone} are not online"));
        }
        match &self.cpu {
            Some(manager) => {
                let reserved = cpus.intersection(manager.reserved());
                if !reserved.is_empty() {
                    found.push(format!("it keeps the processors {reserved}, which are reserved now"));
                }
            }
            None if !cpus.is_empty() => {
                found.push(format!("it keeps the processors {cpus}, although cpuManagerPolicy is none now"));
            }
            None => {}
        }
        found
    }

    /// Why a running pod can never get the resources that it wants now; upstream's message.
    pub fn infeasible(&self, wanted: &Pod, allocated: &Pod) -> Option<String> {
        let guaranteed = wanted.spec.as_ref().is_some_and(|spec| qos_class(spec) == QosClass::Guaranteed);
        let message = |manager: &str, policy: &str| {
            format!("Resize is infeasible for Guaranteed Pods alongside {manager} Manager policy \"{policy}\"")
        };
        if !guaranteed {
            None
        } else if self.cpu.is_some() && asks_for_other(wanted, allocated, CPU) {
            Some(message("CPU", "static"))
        } else if self.memory.is_some() && asks_for_other(wanted, allocated, MEMORY) {
            Some(message("Memory", "Static"))
        } else {
            None
        }
    }
}

fn granted(grants: &[&Grants]) -> Cpus {
    grants.iter().flat_map(|grants| grants.cpus().iter().collect::<Vec<_>>()).collect()
}

/// Memory and huge pages that are not for pods: what is reserved and what eviction keeps free.
fn kept(reserved: &Resources, eviction: u64) -> Amounts {
    let bytes = |(name, amount): (&String, &Quantity)| {
        is_memory(name).then(|| (name.clone(), u64::try_from(amount.value()).unwrap_or(0)))
    };
    let mut kept: BTreeMap<String, u64> = reserved.iter().filter_map(bytes).collect();
    *kept.entry(MEMORY.to_owned()).or_default() += eviction;
    kept
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        config::{Environment, Flags, load},
        worker::sysfs::testing::{Build, regular},
    };

    fn managers(build: &Build, text: &str) -> Result<Managers, ManagersError> {
        let root = tempfile::tempdir().unwrap();
        build.write(root.path());
        let file = root.path().join("config.yaml");
        let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
        std::fs::write(&file, format!("{head}{text}\n")).unwrap();
        let environment =
            Environment { hostname: "node".to_owned(), resolv_conf: "/etc/resolv.conf".into(), processors: 8 };
        let config = load(&Flags { config: Some(file), ..Flags::default() }, &environment).unwrap().config;
        Managers::open(&config, root.path(), 16 << 30)
    }

    fn pod(cpu: &str, memory: &str) -> Pod {
        let amounts = json!({"cpu": cpu, "memory": memory});
        let app = json!({"name": "app", "resources": {"requests": amounts, "limits": amounts}});
        serde_json::from_value(json!({"spec": {"containers": [app]}})).unwrap()
    }

    fn refused(build: &Build, text: &str) -> String {
        crate::obs::chain::Chain(&managers(build, text).unwrap_err()).to_string()
    }

    fn grants(value: Value) -> Grants {
        serde_json::from_value(value).unwrap()
    }

    const STATIC: &str =
        "cpuManagerPolicy: static\nsystemReserved: {cpu: 500m, memory: 1Gi}\nkubeReserved: {cpu: 600m}";

    #[test]
    fn reserved_parts_of_processors_are_rounded_up() {
        let managers = managers(&regular(1, 1, 4, 2, 1), STATIC).unwrap();
        let shared = managers.shared(&[]).unwrap();
        assert_eq!(shared.to_string(), "0-7");
        let given = managers.grant(&pod("6", "1Gi"), &[], None).unwrap();
        assert_eq!(given.cpus().to_string(), "1-3,5-7", "1100m are two processors");
        assert_eq!(managers.shared(&[&given]).unwrap().to_string(), "0,4");
        let rejection = managers.grant(&pod("1", "1Gi"), &[&given], None).unwrap_err();
        assert_eq!(rejection.reason, "UnexpectedAdmissionError");
    }

    #[test]
    fn processors_and_memory_come_from_the_same_node() {
        let text = format!(
            "{STATIC}\nmemoryManagerPolicy: Static\ntopologyManagerPolicy: single-numa-node\nevictionHard: \
             {{memory.available: \"0\"}}\nreservedMemory: [{{numaNode: 0, limits: {{memory: 1Gi}}}}]"
        );
        let managers = managers(&regular(2, 1, 4, 1, 1), &text).unwrap();
        // Two of the first node's four processors are reserved, and one of its sixteen GiB.
        let places =
            |grants: &Grants| (grants.cpus().to_string(), grants.of("app").unwrap().memory_nodes().to_string());
        let first = managers.grant(&pod("2", "1Gi"), &[], None).unwrap();
        assert_eq!(places(&first), ("2-3".to_owned(), "0".to_owned()));
        let second = managers.grant(&pod("2", "15Gi"), &[&first], None).unwrap();
        assert_eq!(places(&second), ("4-5".to_owned(), "1".to_owned()));
        // Processors are left on the second node alone, and so much memory on the first.
        let rejection = managers.grant(&pod("2", "10Gi"), &[&first, &second], None).unwrap_err();
        assert_eq!(rejection.reason, "TopologyAffinityError");
        // Where no node has the memory it says so itself, as upstream's.
        let rejection = managers.grant(&pod("2", "15Gi"), &[&first, &second], None).unwrap_err();
        assert_eq!(rejection.reason, "UnexpectedAdmissionError");
    }

    #[test]
    fn what_an_earlier_agent_gave_is_kept_and_said() {
        let build = regular(1, 1, 4, 1, 1);
        let none = managers(&build, "").unwrap();
        assert_eq!(none.shared(&[]), None);
        let held = grants(json!({"app": {"cpus": "1,7"}}));
        assert_eq!(none.shared(&[&held]).unwrap().to_string(), "0,2-3");
        assert_eq!(
            none.oddities(&held),
            ["its processors 7 are not online", "it keeps the processors 1,7, although cpuManagerPolicy is none now"]
        );
        let others = managers(&build, "cpuManagerPolicy: static\nreservedSystemCPUs: \"1\"").unwrap();
        let held = grants(json!({"app": {"cpus": "1-2"}}));
        assert_eq!(others.oddities(&held), ["it keeps the processors 1, which are reserved now"]);
        assert_eq!(others.grant(&pod("2", "1Gi"), &[&held], None).unwrap().cpus().to_string(), "0,3");
        assert!(others.oddities(&Grants::default()).is_empty());
    }

    #[test]
    fn guaranteed_pods_keep_their_size_under_a_static_policy() {
        let build = regular(1, 1, 4, 1, 1);
        let text = format!(
            "{STATIC}\nmemoryManagerPolicy: Static\nreservedMemory: [{{numaNode: 0, limits: {{memory: 1124Mi}}}}]"
        );
        let both = managers(&build, &text).unwrap();
        let held = pod("1", "1Gi");
        let cpu = "Resize is infeasible for Guaranteed Pods alongside CPU Manager policy \"static\"";
        assert_eq!(both.infeasible(&pod("2", "1Gi"), &held).as_deref(), Some(cpu));
        let memory = "Resize is infeasible for Guaranteed Pods alongside Memory Manager policy \"Static\"";
        assert_eq!(both.infeasible(&pod("1000m", "2Gi"), &held).as_deref(), Some(memory));
        assert_eq!(managers(&build, STATIC).unwrap().infeasible(&pod("1", "2Gi"), &held), None, "memory alone");
        assert_eq!(managers(&build, "").unwrap().infeasible(&pod("2", "2Gi"), &held), None);
    }

    #[test]
    fn managers_that_do_not_go_with_the_machine_do_not_start() {
        let build = regular(1, 1, 4, 1, 1);
        let text = refused(&build, "cpuManagerPolicy: static\nreservedSystemCPUs: \"6-7\"");
        assert!(text.ends_with("unable to reserve the required amount of CPUs (size of  did not equal 2)"), "{text}");
        let text = refused(&build, "memoryManagerPolicy: Static\nsystemReserved: {memory: 1Gi}");
        assert!(text.contains("is not equal to the value \"1178599424\""), "{text}");
        let text = refused(&regular(9, 1, 1, 1, 1), "topologyManagerPolicy: best-effort");
        assert_eq!(text, "topologyManagerPolicy: unsupported on machines with more than 8 NUMA Nodes");
        let more =
            "topologyManagerPolicy: best-effort\ntopologyManagerPolicyOptions: {max-allowable-numa-nodes: \"9\"}";
        assert!(managers(&regular(9, 1, 1, 1, 1), more).is_ok());
    }
}
