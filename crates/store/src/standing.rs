//! How this node stands, for stores that tell others of it.
//!
//! Surface: [`Standing`] and [`Problem`], which the loop makes and [`crate::Store::report`] takes. What becomes of them, and in whose
//! words beside those of the texts, is the store's business.

/// How this node stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Everything that is wanted on this node was tried, and its own part is right.
    pub ready: bool,
    /// What is wrong on this node.
    pub problems: Vec<Problem>,
    /// Remarks on the leases of others, some of them if there are very many.
    pub remarks: Vec<Problem>,
}

/// Something that a person has to mend, and that flannel goes on with meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Its kind in one word in CamelCase, the same for as long as the problem is of that kind.
    pub reason: &'static str,
    /// What is wrong, on which object, why and what to do: one line.
    pub text: String,
    /// Pods of this node have no network, or none to reach others by, because of it.
    pub blocks_pods: bool,
}

impl Standing {
    /// The problems that keep this node's pods from having a network.
    pub fn blocking(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.blocks_pods)
    }
}
