//! berth's own part of the configuration (`kind: BerthConfiguration`): what a kubelet has no field for.

use super::schema::{
    Field,
    Literal::{Bool as B, Integer as I, Text as T, Unset},
    Shape::{Bool, Duration, Integer, List, Map, Object, Text},
    idle, later, object, used, used_unless_zero,
};

/// `kind` of the document.
pub const KIND: &str = "BerthConfiguration";
/// `apiVersion` of the document.
pub const API_VERSION: &str = "berth.dev/v1alpha1";

/// One registry; its `host` is the part of a reference before the first slash.
const REGISTRY: &[Field] = &[
    used("host", Text, Unset),
    used("mirrors", List(&Text), Unset),
    used("plainHTTP", Bool, Unset),
    used("caFile", Text, Unset),
    used("username", Text, Unset),
    used("passwordFile", Text, Unset),
];

/// One RuntimeClass handler.
pub(super) const HANDLER: &[Field] = &[
    used("name", Text, Unset),
    used("path", Text, Unset),
    used("arguments", List(&Text), Unset),
    used("timeout", Duration, T("1m")),
];

/// The fields.
pub const FIELDS: &[Field] = &[
    idle("kind", Text),
    idle("apiVersion", Text),
    used_unless_zero("nodeName", Text, Unset),
    used("nodeLabels", Map(&Text), Unset),
    object(
        "storage",
        &[
            used_unless_zero("rootDirectory", Text, T("/var/lib/berth")),
            used_unless_zero("runDirectory", Text, T("/run/berth")),
        ],
    ),
    object(
        "network",
        &[
            used_unless_zero("bridge", Text, T("berth0")),
            used("subnets", List(&Text), Unset),
            used("mtu", Integer(0, 65535), I(0)),
            used("masquerade", Bool, B(true)),
            used("hairpin", Bool, B(true)),
            used_unless_zero("table", Text, T("berth")),
        ],
    ),
    used("registries", List(&Object(REGISTRY)), Unset),
    later("registryAuthFile", Text, Unset),
    object("runtime", &[used("handlers", List(&Object(HANDLER)), Unset)]),
    used("cdiSpecDirs", List(&Text), Unset),
    object("supervisor", &[used("oomScoreAdj", Integer(-1000, 1000), I(-998))]),
    object("events", &[used("kept", Integer(0, 100_000), I(1000))]),
];
