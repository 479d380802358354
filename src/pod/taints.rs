//! Taints of the node and what tolerates them (`k8s.io/component-helpers/scheduling/corev1`).

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// The first of `taints` with the effect NoExecute that no toleration covers. The other effects are a matter of
/// scheduling, which is over when a pod is here.
pub fn untolerated<'t>(taints: &'t [Taint], tolerations: &[Toleration]) -> Option<&'t Taint> {
    let covered = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    taints.iter().find(|taint| taint.effect == "NoExecute" && !covered(taint))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let (effect, key, value) = (text(&toleration.effect), text(&toleration.key), text(&toleration.value));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match text(&toleration.operator).as_str() {
        "" | "Equal" => value == text(&taint.value),
        "Exists" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(value: &str, effect: &str) -> Taint {
        Taint { key: "disk".to_owned(), value: Some(value.to_owned()), effect: effect.to_owned(), ..Taint::default() }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Toleration {
            key: text(key),
            operator: text(operator),
            value: text(value),
            effect: text(effect),
            ..Toleration::default()
        }
    }

    #[test]
    fn only_no_execute_keeps_a_pod_out() {
        for effect in ["NoSchedule", "PreferNoSchedule"] {
            assert_eq!(untolerated(&[taint("slow", effect)], &[]), None);
        }
        assert!(untolerated(&[taint("slow", "NoSchedule"), taint("slow", "NoExecute")], &[]).is_some());
    }

    #[test]
    fn a_toleration_covers_by_key_value_and_effect() {
        let taints = [taint("slow", "NoExecute")];
        for (toleration, covers) in [
            (toleration("disk", "", "slow", ""), true),
            (toleration("disk", "Equal", "slow", "NoExecute"), true),
            (toleration("disk", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("disk", "Equal", "fast", ""), false),
            (toleration("disk", "Exists", "", "NoSchedule"), false),
            (toleration("other", "Exists", "", ""), false),
            (toleration("disk", "Gt", "slow", ""), false),
        ] {
            assert_eq!(untolerated(&taints, std::slice::from_ref(&toleration)).is_none(), covers, "{toleration:?}");
        }
    }
}
