//! A file as redb sees it, without being written: what would be is kept in memory.
//!
//! redb repairs what it opens, and marks it as open. A file that may not be ours is looked at
//! through this first.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE_BYTES: u64 = 4096;

/// A file under pages that are in memory alone.
#[derive(Debug)]
pub(super) struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How long it is.
    len: u64,
    /// How much of the file still shows.
    file_len: u64,
    /// What was written, by the number of the page.
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            state: Mutex::new(State {
                len,
                file_len: len,
                pages: BTreeMap::new(),
            }),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What stands at `offset` of the file, and zeros behind its end.
    fn read_file(&self, state: &State, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = state.file_len.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        let (from_file, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(from_file, offset)
    }
}

/// The parts of a range that lie in one page each: page, offset in it, and the part of the buffer.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % PAGE_BYTES) as usize;
        let part = done..len.min(done + PAGE_BYTES as usize - within);
        done = part.end;
        Some((at / PAGE_BYTES, within, part))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        if offset
            .checked_add(out.len() as u64)
            .is_none_or(|end| end > state.len)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_file(&state, offset, out)?;
        for (page, within, part) in parts(offset, out.len()) {
            if let Some(written) = state.pages.get(&page) {
                let len = part.len();
                out[part].copy_from_slice(&written[within..within + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            // What grows there again is zero.
            state.file_len = state.file_len.min(len);
            let kept = len.div_ceil(PAGE_BYTES);
            state.pages.retain(|page, _| *page < kept);
            if let Some(last) = state.pages.get_mut(&(len / PAGE_BYTES)) {
                last[(len % PAGE_BYTES) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        if offset
            .checked_add(data.len() as u64)
            .is_none_or(|end| end > state.len)
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, within, part) in parts(offset, data.len()) {
            if !state.pages.contains_key(&page) {
                let mut below = vec![0; PAGE_BYTES as usize];
                self.read_file(&state, page * PAGE_BYTES, &mut below)?;
                state.pages.insert(page, below);
            }
            if let Some(written) = state.pages.get_mut(&page) {
                written[within..within + part.len()].copy_from_slice(&data[part]);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Read(u64, usize),
        Write(u64, Vec<u8>),
        Resize(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20_000_u64, 0..9000_usize).prop_map(|(at, len)| Step::Read(at, len)),
            (
                0..20_000_u64,
                proptest::collection::vec(1..=255_u8, 0..9000)
            )
                .prop_map(|(at, data)| Step::Write(at, data)),
            (0..20_000_u64).prop_map(Step::Resize),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// It is like a file, and the file below stays what it is.
        #[test]
        fn like_a_file(
            base in proptest::collection::vec(1..=255_u8, 0..13_000),
            steps in proptest::collection::vec(step(), 0..30),
        ) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&base).unwrap();
            let overlay = Overlay::new(file.try_clone().unwrap()).unwrap();
            let mut model = base.clone();
            for step in steps {
                match step {
                    Step::Read(at, len) => {
                        let mut out = vec![7; len];
                        let start = usize::try_from(at).unwrap();
                        match (overlay.read(at, &mut out), model.get(start..start + len)) {
                            (Ok(()), Some(there)) => prop_assert_eq!(&out, there),
                            (Err(_), None) => {}
                            (read, there) => panic!("{read:?} {:?}", there.map(<[u8]>::len)),
                        }
                    }
                    Step::Write(at, data) => {
                        let start = usize::try_from(at).unwrap();
                        match (overlay.write(at, &data), model.get_mut(start..start + data.len())) {
                            (Ok(()), Some(there)) => there.copy_from_slice(&data),
                            (Err(_), None) => {}
                            (wrote, _) => panic!("{wrote:?}"),
                        }
                    }
                    Step::Resize(len) => {
                        overlay.set_len(len).unwrap();
                        model.resize(usize::try_from(len).unwrap(), 0);
                    }
                }
            }
            let mut all = vec![7; model.len()];
            overlay.read(0, &mut all).unwrap();
            prop_assert_eq!(all, model);
            let mut below = vec![0; base.len()];
            file.read_exact_at(&mut below, 0).unwrap();
            prop_assert_eq!(below, base);
        }
    }
}
