//! What the nodes of a world see, and how things are.

use mesh_proto::wire::MemberState;

use super::world::World;

impl World {
    /// How `viewer` sees `other`.
    pub(crate) fn seen(&self, viewer: usize, other: usize) -> Option<MemberState> {
        let name = &self.nodes[other].name;
        let known = self.nodes[viewer].membership.member(name)?;
        Some(known.state)
    }

    /// The nodes that take part.
    pub(crate) fn live(&self) -> Vec<usize> {
        let all = 0..self.nodes.len();
        all.filter(|&index| self.nodes[index].alive && self.nodes[index].superseded.is_none())
            .collect()
    }

    /// The first view that is not as things are.
    pub(crate) fn difference(&self) -> Option<String> {
        let live = self.live();
        for &viewer in &live {
            let node = &self.nodes[viewer];
            let view = &node.membership;
            for &other in &live {
                let name = &self.nodes[other].name;
                if other == viewer || *name == node.name {
                    continue;
                }
                let own = self.nodes[other].membership.own();
                let state = if own.draining {
                    MemberState::Draining
                } else {
                    MemberState::Alive
                };
                let Some(known) = view.member(name) else {
                    return Some(format!("{} does not know {name}", node.name));
                };
                if *known.profile != *own || known.state != state {
                    return Some(format!(
                        "{} sees {name} as {:?} at {}, and it is {state:?} at {}",
                        node.name, known.state, known.profile.revision, own.revision
                    ));
                }
            }
            for known in view.members() {
                let name = &known.profile.name;
                let lives = live.iter().any(|index| self.nodes[*index].name == *name);
                if !lives && !matches!(known.state, MemberState::Down | MemberState::Left) {
                    return Some(format!("{} sees {name} as {:?}", node.name, known.state));
                }
            }
        }
        None
    }

    pub(crate) fn is_true(&self) -> bool {
        self.difference().is_none()
    }

    #[track_caller]
    pub(crate) fn assert_truth(&self) {
        assert_eq!(self.difference(), None);
    }
}
