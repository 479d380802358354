//! Conditions of a pod's status.

use k8s_openapi::{api::core::v1::PodCondition, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// The condition of a type.
pub fn condition<'c>(conditions: &'c [PodCondition], type_: &str) -> Option<&'c PodCondition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of a type is `True`.
pub fn is_true(conditions: &[PodCondition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Puts `new` in the place of the condition of its type. The time of the last transition is `now` if the status is
/// another than before, else it stays. Says whether anything changed.
pub fn set_condition(conditions: &mut Vec<PodCondition>, mut new: PodCondition, now: Timestamp) -> bool {
    let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == new.type_) else {
        new.last_transition_time.get_or_insert(Time(now));
        conditions.push(new);
        return true;
    };
    new.last_transition_time =
        if old.status == new.status { old.last_transition_time.clone() } else { Some(Time(now)) };
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &str, reason: Option<&str>) -> PodCondition {
        PodCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: reason.map(str::to_owned),
            ..PodCondition::default()
        }
    }

    #[test]
    fn the_transition_time_changes_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, ready("False", None), at(1)));
        assert!(!set_condition(&mut conditions, ready("False", None), at(2)));
        assert!(set_condition(&mut conditions, ready("False", Some("ContainersNotReady")), at(3)));
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(1))));
        assert!(set_condition(&mut conditions, ready("True", None), at(4)));
        assert_eq!(conditions[0].last_transition_time, Some(Time(at(4))));
        assert_eq!(conditions.len(), 1);
        assert!(is_true(&conditions, "Ready") && !is_true(&conditions, "Initialized"));
    }
}
