//! The connection in use of a client that knows several servers, and which of them is next when it fails.
//!
//! Surface: [`Current`]. What a link is beside its connection, and which troubles make it fail, is the clients' part.

/// The link in use, and the number of the server to try first for the next.
#[derive(Debug)]
pub(crate) struct Current<L> {
    pub(crate) link: Option<L>,
    first: usize,
}

impl<L> Default for Current<L> {
    fn default() -> Self {
        Self { link: None, first: 0 }
    }
}

impl<L: Clone> Current<L> {
    /// The numbers of so many servers, in the order in which they are to be tried.
    pub(crate) fn order(&self, servers: usize) -> impl Iterator<Item = usize> + use<L> {
        let first = self.first;
        (0..servers).map(move |number| (first + number) % servers)
    }

    /// Uses a link to the server of a number.
    pub(crate) fn take(&mut self, number: usize, link: L) -> L {
        self.first = number;
        self.link.insert(link).clone()
    }

    /// Gives up the link in use, and its server for now.
    pub(crate) fn fail(&mut self) {
        self.link = None;
        self.first += 1;
    }
}
