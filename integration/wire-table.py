#!/usr/bin/env python3
"""Makes src/control/wire/table.txt: which number and kind each field of a message has in Kubernetes' protobuf encoding.

The numbers are read from the published crate k8s-pb (generated from upstream's .proto files), the JSON names from the crate
k8s-openapi that berth uses. A field whose message is inlined in JSON has no name.

    integration/wire-table.py ~/.cargo/registry/src/*/k8s-pb-* ~/.cargo/registry/src/*/k8s-openapi-*/src/v1_36 \
        > src/control/wire/table.txt
"""
import pathlib
import re
import sys

ROOTS = {
    "core": "ConfigMap Endpoints Event Namespace Node PersistentVolumeClaim PersistentVolume Pod PodTemplate Secret "
            "ServiceAccount Service Binding LimitRange ResourceQuota",
    "apps": "DaemonSet Deployment ReplicaSet",
    "authentication": "SelfSubjectReview TokenReview TokenRequest",
    "authorization": "LocalSubjectAccessReview SelfSubjectAccessReview SubjectAccessReview SelfSubjectRulesReview",
    "autoscaling": "Scale",
    "batch": "Job",
    "certificates": "CertificateSigningRequest",
    "coordination": "Lease",
    "discovery": "EndpointSlice",
    "events": "Event",
    "node": "RuntimeClass",
    "policy": "Eviction",
    "rbac": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "scheduling": "PriorityClass",
    "storage": "CSIDriver CSINode StorageClass",
}
META = "apimachinery/pkg/apis/meta/v1"
# Messages whose JSON is no object of their fields: one letter each.
SPECIAL = {
    META + ".time": "T", META + ".microtime": "M", META + ".duration": "D", META + ".fieldsv1": "F",
    "apimachinery/pkg/api/resource.quantity": "Q", "apimachinery/pkg/util/intstr.intorstring": "I",
    "apimachinery/pkg/runtime.rawextension": "R",
}
FIELD = re.compile(r'#\[prost\(([^\]]*)\)\]\s*(?:#\[[^\]]*\]\s*)*pub (?:r#)?(\w+):\s*(.*?),\n(?=\s*(?:#\[|\Z))', re.S)


def plain(name):
    return name.replace("_", "").lower()


def messages(crate):
    found = {}
    for path in crate.glob("src/**/mod.rs"):
        module = str(path.parent.relative_to(crate / "src")).removeprefix("api/")
        text = re.sub(r"^\s*///.*\n", "", path.read_text(), flags=re.M)
        for name, body in re.findall(r"pub struct (\w+) \{\n(.*?)\n?\}\n", text, flags=re.S):
            found[f"{module}.{plain(name)}"] = (module, FIELD.findall(body + "\n"))
    return found


def json_names(crate):
    found = {}
    for path in crate.glob("**/*.rs"):
        module = str(path.parent.relative_to(crate)).removeprefix("api/")
        text = path.read_text()
        names = re.findall(r'"(\S+)" => Field::Key_', text)
        struct = re.search(r"pub struct (\w+)", text)
        if struct:
            found[f"{module}.{plain(struct.group(1))}"] = {plain(name): name for name in names}
    return found


def resolve(module, kind):
    """The message that a Rust path in a module names."""
    path = re.search(r"((?:super::)*(?:\w+::)*)(\w+)>?$", kind.rstrip(">,"))
    parts = [part for part in path.group(1).split("::") if part]
    base = ("api/" + module if not module.startswith("apimachinery") else module).split("/")
    while parts and parts[0] == "super":
        parts, base = parts[1:], base[:-1]
    full = "/".join(base + parts).removeprefix("api/")
    return f"{full}.{plain(path.group(2))}"


def main():
    pb, names = messages(pathlib.Path(sys.argv[1])), json_names(pathlib.Path(sys.argv[2]))
    pending = [(f"{group}/v1.{kind.lower()}", None) for group, kinds in ROOTS.items() for kind in kinds.split()]
    pending.append((META + ".deleteoptions", None))
    lines = {}
    while pending:
        message, of_parent = pending.pop()
        if message in lines:
            continue
        module, fields = pb[message]
        known = names.get(message) or of_parent
        if known is None:
            raise SystemExit(f"{message} has no JSON names")
        written = []
        for options, name, kind in fields:
            tag = re.search(r'tag = "(\d+)"', options).group(1)
            repeated = "*" if ", repeated" in options else ""
            json = known.get(plain(name))
            map_of = re.search(r'btree_map = "string, (\w+)"', options)
            kind = re.sub(r"\s+", "", kind)
            scalar = map_of.group(1) if map_of else options.split(",")[0].split(" ")[0]
            code = {"string": "s", "bool": "b", "int32": "i", "int64": "i", "bytes": "y", "double": "d"}.get(scalar)
            if code is None:
                target = resolve(module, kind)
                code = SPECIAL.get(target)
                if code is None:
                    fields_of = pb[target][1]
                    only = [field for field in fields_of if field[1] == "items"]
                    if len(fields_of) == 1 and only and target not in names:
                        code = "L"
                if code is None:
                    if json is None:
                        inline = dict(known)
                        pending.append((target, inline if target not in names else None))
                    else:
                        pending.append((target, None))
                    code = "m" + target
            if json is None and not code.startswith("m"):
                print(f"{message}.{name}: not in JSON, left out", file=sys.stderr)
                continue
            written.append(f"{json or ''}:{tag}:{'e' if map_of else ''}{repeated}{code}")
        lines[message] = f"{message} " + " ".join(written)
    for message in sorted(lines):
        print(lines[message].rstrip().replace(META, "meta/v1"))


main()
