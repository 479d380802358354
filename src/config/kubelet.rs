//! Every field of upstream's `KubeletConfiguration` (`kubelet.config.k8s.io/v1beta1`, as of Kubernetes 1.36).
//!
//! A file written for a kubelet is accepted as it stands, so all fields are here with upstream's types and defaults
//! (<https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/>), whether berth acts on them or not.

use super::schema::{
    Field,
    Literal::{Bool as B, Integer as I, Text as T, Unset},
    Shape::{
        self, Any, Bool, Duration, DurationOrNanoseconds, Integer, List, Map, Number, Object, OneOf, Quantity, Text,
    },
    idle, later, object, used, used_unless_zero,
};

/// `kind` of the document.
pub const KIND: &str = "KubeletConfiguration";
/// `apiVersion` of the document.
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";

const INT32: Shape = Integer(i32::MIN as i64, i32::MAX as i64);
const COUNT: Shape = Integer(0, i32::MAX as i64);
const PERCENT: Shape = Integer(0, 100);
const PORT: Shape = Integer(0, 65535);
const TEXTS: Shape = List(&Text);
const TEXT_MAP: Shape = Map(&Text);

const AUTHENTICATION: &[Field] = &[
    object("x509", &[later("clientCAFile", Text, Unset)]),
    object("webhook", &[later("enabled", Bool, B(true)), later("cacheTTL", Duration, T("2m"))]),
    object(
        "anonymous",
        &[later("enabled", Bool, B(false)), later("conditions", List(&Object(&[idle("path", Text)])), Unset)],
    ),
];

const AUTHORIZATION: &[Field] = &[
    later("mode", OneOf(&["AlwaysAllow", "Webhook"]), T("Webhook")),
    object(
        "webhook",
        &[later("cacheAuthorizedTTL", Duration, T("5m")), later("cacheUnauthorizedTTL", Duration, T("30s"))],
    ),
];

const LOGGING: &[Field] = &[
    used_unless_zero("format", OneOf(&["text", "json"]), T("text")),
    idle("flushFrequency", DurationOrNanoseconds),
    used("verbosity", Integer(0, 10), I(0)),
    later("vmodule", List(&Object(&[idle("filePattern", Text), idle("verbosity", COUNT)])), Unset),
    object(
        "options",
        &[
            object("text", &[later("splitStream", Bool, Unset), idle("infoBufferSize", Quantity)]),
            object("json", &[later("splitStream", Bool, Unset), idle("infoBufferSize", Quantity)]),
        ],
    ),
];

const TAINT: &[Field] =
    &[used("key", Text, Unset), used("value", Text, Unset), used("effect", Text, Unset), idle("timeAdded", Text)];

const RESERVED_MEMORY: &[Field] = &[used("numaNode", COUNT, Unset), used("limits", Map(&Quantity), Unset)];

const SHUTDOWN_BY_PRIORITY: &[Field] = &[idle("priority", INT32), idle("shutdownGracePeriodSeconds", COUNT)];

/// The fields.
pub const FIELDS: &[Field] = &[
    idle("kind", Text),
    idle("apiVersion", Text),
    // Where pods come from.
    later("enableServer", Bool, B(true)),
    used_unless_zero("staticPodPath", Text, Unset),
    used_unless_zero("podLogsDir", Text, T("/var/log/pods")),
    idle("syncFrequency", Duration),
    used_unless_zero("fileCheckFrequency", Duration, T("20s")),
    used_unless_zero("httpCheckFrequency", Duration, T("20s")),
    used_unless_zero("staticPodURL", Text, Unset),
    used_unless_zero("staticPodURLHeader", Map(&TEXTS), Unset),
    // The kubelet's own server.
    later("address", Text, T("0.0.0.0")),
    later("port", PORT, I(10250)),
    later("readOnlyPort", PORT, I(0)),
    later("tlsCertFile", Text, Unset),
    later("tlsPrivateKeyFile", Text, Unset),
    later("tlsCipherSuites", TEXTS, Unset),
    later("tlsCurvePreferences", List(&Any), Unset),
    later("tlsMinVersion", Text, Unset),
    later("rotateCertificates", Bool, B(false)),
    later("serverTLSBootstrap", Bool, B(false)),
    object("authentication", AUTHENTICATION),
    object("authorization", AUTHORIZATION),
    later("enableDebuggingHandlers", Bool, B(true)),
    later("enableContentionProfiling", Bool, B(false)),
    later("enableProfilingHandler", Bool, B(true)),
    later("enableDebugFlagsHandler", Bool, B(true)),
    later("enableSystemLogHandler", Bool, B(true)),
    later("enableSystemLogQuery", Bool, B(false)),
    later("healthzPort", PORT, I(10248)),
    later("healthzBindAddress", Text, T("127.0.0.1")),
    idle("streamingConnectionIdleTimeout", Duration),
    later("showHiddenMetricsForVersion", Text, Unset),
    // Images.
    later("registryPullQPS", COUNT, I(5)),
    later("registryBurst", COUNT, I(10)),
    later("imagePullCredentialsVerificationPolicy", Text, T("NeverVerifyPreloadedImages")),
    later("preloadedImagesVerificationAllowlist", TEXTS, Unset),
    later("imageMinimumGCAge", Duration, T("2m")),
    later("imageMaximumGCAge", Duration, T("0s")),
    later("imageGCHighThresholdPercent", PERCENT, I(85)),
    later("imageGCLowThresholdPercent", PERCENT, I(80)),
    used("serializeImagePulls", Bool, B(true)),
    used("maxParallelImagePulls", Integer(1, i32::MAX as i64), Unset),
    idle("imageServiceEndpoint", Text),
    idle("containerRuntimeEndpoint", Text),
    // Events and the API server.
    later("eventRecordQPS", COUNT, I(50)),
    later("eventBurst", COUNT, I(100)),
    later("contentType", Text, T("application/vnd.kubernetes.protobuf")),
    later("kubeAPIQPS", COUNT, I(50)),
    later("kubeAPIBurst", COUNT, I(100)),
    later("nodeStatusUpdateFrequency", Duration, T("10s")),
    later("nodeStatusReportFrequency", Duration, T("5m")),
    later("nodeLeaseDurationSeconds", COUNT, I(40)),
    later("nodeStatusMaxImages", INT32, I(50)),
    later("registerNode", Bool, B(true)),
    used_unless_zero("registerWithTaints", List(&Object(TAINT)), Unset),
    later("providerID", Text, Unset),
    later("enableControllerAttachDetach", Bool, B(true)),
    later("configMapAndSecretChangeDetectionStrategy", OneOf(&["Get", "Cache", "Watch"]), T("Watch")),
    // Names and addresses.
    used("oomScoreAdj", Integer(-1000, 1000), I(-999)),
    used("clusterDomain", Text, Unset),
    used("clusterDNS", TEXTS, Unset),
    used("resolvConf", Text, Unset),
    idle("hairpinMode", OneOf(&["promiscuous-bridge", "hairpin-veth", "none"])),
    used_unless_zero("podCIDR", Text, Unset),
    // cgroups and limits.
    later("kubeletCgroups", Text, Unset),
    later("systemCgroups", Text, Unset),
    used_unless_zero("cgroupRoot", Text, T("/")),
    later("cgroupsPerQOS", Bool, B(true)),
    later("cgroupDriver", OneOf(&["cgroupfs", "systemd"]), T("cgroupfs")),
    used("failCgroupV1", Bool, B(false)),
    used("singleProcessOOMKill", Bool, B(false)),
    used_unless_zero("maxPods", COUNT, I(110)),
    used("podsPerCore", COUNT, I(0)),
    used("podPidsLimit", Integer(-1, i64::MAX), I(-1)),
    used("cpuCFSQuota", Bool, B(true)),
    used("cpuCFSQuotaPeriod", Duration, T("100ms")),
    used_unless_zero("maxOpenFiles", Integer(0, i64::MAX), I(1_000_000)),
    used("memoryThrottlingFactor", Number, Unset),
    used("memoryReservationPolicy", OneOf(&["None", "TieredReservation"]), T("None")),
    used_unless_zero("cpuManagerPolicy", OneOf(&["none", "static"]), T("none")),
    used_unless_zero("cpuManagerPolicyOptions", TEXT_MAP, Unset),
    // What runs on the shared pool is told when the pool changes, not every so often.
    idle("cpuManagerReconcilePeriod", Duration),
    used_unless_zero("memoryManagerPolicy", OneOf(&["None", "Static"]), T("None")),
    used_unless_zero("reservedMemory", List(&Object(RESERVED_MEMORY)), Unset),
    used_unless_zero(
        "topologyManagerPolicy",
        OneOf(&["none", "best-effort", "restricted", "single-numa-node"]),
        T("none"),
    ),
    used_unless_zero("topologyManagerScope", OneOf(&["container", "pod"]), T("container")),
    used_unless_zero("topologyManagerPolicyOptions", TEXT_MAP, Unset),
    later("qosReserved", TEXT_MAP, Unset),
    used("systemReserved", Map(&Quantity), Unset),
    used("kubeReserved", Map(&Quantity), Unset),
    // "0" is the first processor, not nothing.
    used("reservedSystemCPUs", Text, Unset),
    later("systemReservedCgroup", Text, Unset),
    later("kubeReservedCgroup", Text, Unset),
    used("enforceNodeAllocatable", TEXTS, Unset),
    used("failSwapOn", Bool, B(false)),
    object("memorySwap", &[used_unless_zero("swapBehavior", OneOf(&["NoSwap", "LimitedSwap"]), T("NoSwap"))]),
    later("protectKernelDefaults", Bool, B(false)),
    used("allowedUnsafeSysctls", TEXTS, Unset),
    later("defaultPodSysctls", Any, Unset),
    used("seccompDefault", Bool, B(false)),
    object("userNamespaces", &[used("idsPerPod", Integer(0, i64::MAX), I(65536))]),
    idle("makeIPTablesUtilChains", Bool),
    idle("iptablesMasqueradeBit", INT32),
    idle("iptablesDropBit", INT32),
    // Eviction, volumes, shutdown.
    later("volumeStatsAggPeriod", Duration, T("1m")),
    // One of nothing is none at all; that of memory is part of what reservedMemory adds up to.
    Field { zero_is_unset: false, ..later("evictionHard", TEXT_MAP, Unset) },
    later("evictionSoft", TEXT_MAP, Unset),
    later("evictionSoftGracePeriod", Map(&Duration), Unset),
    later("evictionPressureTransitionPeriod", Duration, T("5m")),
    later("evictionMaxPodGracePeriod", INT32, I(0)),
    later("evictionMinimumReclaim", TEXT_MAP, Unset),
    later("mergeDefaultEvictionSettings", Bool, B(false)),
    later("kernelMemcgNotification", Bool, B(false)),
    later("localStorageCapacityIsolation", Bool, B(true)),
    later("volumePluginDir", Text, T("/usr/libexec/kubernetes/kubelet-plugins/volume/exec/")),
    later("shutdownGracePeriod", Duration, T("0s")),
    later("shutdownGracePeriodCriticalPods", Duration, T("0s")),
    later("shutdownGracePeriodByPodPriority", List(&Object(SHUTDOWN_BY_PRIORITY)), Unset),
    // Containers and their logs.
    idle("runtimeRequestTimeout", Duration),
    used_unless_zero("containerLogMaxSize", Quantity, T("10Mi")),
    used("containerLogMaxFiles", Integer(2, i32::MAX as i64), I(5)),
    idle("containerLogMaxWorkers", COUNT),
    idle("containerLogMonitorInterval", Duration),
    object("crashLoopBackOff", &[used("maxContainerRestartPeriod", Duration, T("5m"))]),
    // The agent itself.
    object("logging", LOGGING),
    object("tracing", &[later("endpoint", Text, Unset), later("samplingRatePerMillion", COUNT, I(0))]),
    later("featureGates", Map(&Bool), Unset),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::{parse_bytes, parse_duration};

    /// Defaults are constants of the table: each must have the shape of its field.
    #[test]
    fn every_default_has_the_shape_of_its_field() {
        fn walk(fields: &[Field]) {
            for field in fields {
                let fits = match (field.shape, field.default) {
                    (_, Unset) | (Bool, B(_)) | (Text, T(_)) => true,
                    (Integer(low, high), I(value)) => (low..=high).contains(&value),
                    (Duration, T(text)) => parse_duration(text).is_ok(),
                    (Quantity, T(text)) => parse_bytes(text).is_ok(),
                    (OneOf(values), T(text)) => values.contains(&text),
                    _ => false,
                };
                assert!(fits, "{}", field.name);
                if let Object(inner) = field.shape {
                    walk(inner);
                }
                assert_eq!(fields.iter().filter(|other| other.name == field.name).count(), 1, "{}", field.name);
            }
        }
        walk(FIELDS);
        walk(crate::config::berth::FIELDS);
    }
}
