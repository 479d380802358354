use super::{Hint, NodeMask, NumaNodes, ResourceHints, TopologyPolicy, merge};

const POLICIES: [TopologyPolicy; 3] =
    [TopologyPolicy::BestEffort, TopologyPolicy::Restricted, TopologyPolicy::SingleNumaNode];

/// Four nodes in two sockets: 0 and 1, 2 and 3.
fn numa() -> NumaNodes {
    let rows = [[10, 12, 32, 32], [12, 10, 32, 32], [32, 32, 10, 11], [32, 32, 11, 10]];
    NumaNodes { distances: rows.iter().enumerate().map(|(node, row)| (node as u32, row.to_vec())).collect() }
}

fn mask(nodes: &[u32]) -> NodeMask {
    nodes.iter().copied().collect()
}

fn yes(nodes: &[u32]) -> Hint {
    Hint { affinity: Some(mask(nodes)), preferred: true }
}

fn no(nodes: &[u32]) -> Hint {
    Hint { affinity: Some(mask(nodes)), preferred: false }
}

fn resources(hints: &[&[Hint]]) -> Vec<ResourceHints> {
    let resource = |(index, hints): (usize, &&[Hint])| ResourceHints {
        resource: format!("example.com/{index}"),
        hints: Some(hints.to_vec()),
    };
    hints.iter().enumerate().map(resource).collect()
}

#[test]
fn the_best_of_all_hints_is_that_of_upstream() {
    let case = |sentence: &str, hints: &[&[Hint]], expected: Hint| {
        let (found, admitted) = merge(&numa(), TopologyPolicy::BestEffort, false, &resources(hints));
        assert_eq!((found, admitted), (expected, true), "{sentence}");
        let (restricted, admitted) = merge(&numa(), TopologyPolicy::Restricted, false, &resources(hints));
        assert_eq!((restricted, admitted), (expected, expected.preferred), "{sentence}, restricted");
    };
    case("nobody asks", &[], yes(&[0, 1, 2, 3]));
    case("there is no way", &[&[]], no(&[0, 1, 2, 3]));
    case("one resource, two nodes", &[&[yes(&[0]), yes(&[1])]], yes(&[0]));
    case("two resources, one node in common", &[&[yes(&[0]), yes(&[1])], &[yes(&[1])]], yes(&[1]));
    case("a node in common that one does not prefer", &[&[yes(&[0]), yes(&[1])], &[no(&[0, 1])]], no(&[0]));
    case("nothing in common", &[&[yes(&[0])], &[yes(&[1])]], no(&[0, 1, 2, 3]));
    case("preferred before narrower", &[&[no(&[0]), yes(&[0, 1])], &[no(&[0]), yes(&[0, 1])]], yes(&[0, 1]));
    case("different masks are not preferred together", &[&[yes(&[0, 1])], &[yes(&[0])]], no(&[0]));
    case(
        "as many nodes as the most demanding resource needs",
        &[&[no(&[0, 1, 2]), no(&[0, 1, 2, 3])], &[no(&[0]), no(&[0, 1, 2, 3])]],
        no(&[0, 1, 2]),
    );
    case(
        "fewer nodes than that, but as many as there can be",
        &[&[no(&[0, 1, 2])], &[no(&[0]), no(&[1, 2, 3])]],
        no(&[1, 2]),
    );
}

#[test]
fn one_node_for_everything_or_nothing() {
    let case = |sentence: &str, hints: &[&[Hint]], expected: Hint, admitted: bool| {
        let found = merge(&numa(), TopologyPolicy::SingleNumaNode, false, &resources(hints));
        assert_eq!(found, (expected, admitted), "{sentence}");
    };
    case("nobody asks", &[], Hint::ANY, true);
    case("one node", &[&[yes(&[1]), no(&[0, 1])], &[yes(&[0]), yes(&[1])]], yes(&[1]), true);
    case("it needs two", &[&[yes(&[0, 1])]], Hint::NONE, false);
    case("nothing in common", &[&[yes(&[0])], &[yes(&[1])]], Hint::NONE, false);
    case("no way", &[&[]], Hint::NONE, false);
}

#[test]
fn of_sets_as_narrow_the_closest_can_be_preferred() {
    let hints = resources(&[&[yes(&[0, 1]), yes(&[0, 2]), yes(&[2, 3])]]);
    let merged = |closest| merge(&numa(), TopologyPolicy::BestEffort, closest, &hints).0;
    assert_eq!(merged(false), yes(&[0, 1]));
    assert_eq!(merged(true), yes(&[2, 3]));
}

#[test]
fn a_resource_without_hints_goes_along_with_any() {
    let mut hints = resources(&[&[yes(&[2])]]);
    hints.push(ResourceHints { resource: "example.com/any".to_owned(), hints: None });
    for policy in POLICIES {
        assert_eq!(merge(&numa(), policy, false, &hints), (yes(&[2]), true), "{policy:?}");
    }
}

#[test]
fn many_resources_on_many_nodes_take_no_time_to_speak_of() {
    // 255 hints of each of eight resources: upstream's product of all would be 255⁸.
    let distances = (0..8).map(|node| (node, vec![10; 8])).collect();
    let numa = NumaNodes { distances };
    let ways: Vec<Hint> = numa
        .all()
        .subsets()
        .into_iter()
        .map(|mask| Hint { affinity: Some(mask), preferred: mask.count() == 2 })
        .collect();
    let hints: Vec<&[Hint]> = (0..8).map(|_| ways.as_slice()).collect();
    assert_eq!(merge(&numa, TopologyPolicy::Restricted, false, &resources(&hints)), (yes(&[0, 1]), true));
}
