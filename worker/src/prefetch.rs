//! Pictures are read, decoded and resized ahead of the steps that need them, by a few threads of their own.
//!
//! Plans name their pictures some steps early, in the order in which the device thread will ask for them. Decoding goes in
//! that order and stops when [`BYTES_AHEAD_MAX`] of pixels wait, so the picture that is asked for next is always among
//! those that are ready or being made.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use ballast_common::dataset::DataRoots;
use ballast_common::error_chain;

use crate::images::{Picture, PictureRequest};
use crate::latents::CachedPictures;

/// Pixels that may wait for the device thread: 512 MiB are 680 pictures of 512x512.
const BYTES_AHEAD_MAX: usize = 512 << 20;

/// Names one picture of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ticket {
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) slot: u32,
    /// Place in the micro-batch.
    pub(crate) index: usize,
}

/// What became of a picture.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Its pixels.
    Picture(Picture),
    /// Its latents are known already.
    Cached,
    /// It cannot be used, for this reason.
    Skipped(String),
}

/// The threads, and what they have ready. Dropping it ends them.
pub(crate) struct Prefetch {
    shared: Arc<Shared>,
}

struct Shared {
    roots: DataRoots,
    cached: CachedPictures,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Ticket, PictureRequest)>,
    /// None while it is being made.
    taken: HashMap<Ticket, Option<(PictureRequest, Loaded)>>,
    bytes_ahead: usize,
    warned: HashSet<String>,
    closed: bool,
}

impl Prefetch {
    /// Starts the threads.
    pub(crate) fn new(roots: DataRoots, threads: usize, cached: CachedPictures) -> Self {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { roots, cached, state, changed });
        for number in 0..threads.max(1) {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || shared.work())
                .expect("the system has a thread to spare");
        }
        Self { shared }
    }

    /// Asks for a picture. Pictures are asked for in the order in which they will be taken.
    pub(crate) fn request(&self, ticket: Ticket, request: PictureRequest) {
        self.shared.lock().queue.push_back((ticket, request));
        self.shared.changed.notify_all();
    }

    /// Waits for a picture. None when its generation was forgotten.
    pub(crate) fn take(&self, ticket: Ticket) -> Option<(PictureRequest, Loaded)> {
        let mut state = self.shared.lock();
        loop {
            match state.taken.get(&ticket) {
                Some(Some(_)) => break,
                Some(None) => {}
                None if state.queue.iter().any(|(waiting, _)| *waiting == ticket) => {}
                None => return None,
            }
            state = self.shared.changed.wait(state).expect(NO_PANIC);
        }
        let (request, loaded) = state.taken.remove(&ticket).flatten().expect("it was just seen");
        state.bytes_ahead -= bytes(&request);
        self.shared.changed.notify_all();
        Some((request, loaded))
    }

    /// Drops everything of a generation and of those before it, and wakes who waits for it.
    pub(crate) fn forget(&self, generation: u64) {
        let mut state = self.shared.lock();
        state.queue.retain(|(ticket, _)| ticket.generation > generation);
        let freed: usize = state
            .taken
            .iter()
            .filter(|(ticket, _)| ticket.generation <= generation)
            .filter_map(|(_, made)| made.as_ref().map(|(request, _)| bytes(request)))
            .sum();
        state.bytes_ahead -= freed;
        state.taken.retain(|ticket, _| ticket.generation > generation);
        self.shared.changed.notify_all();
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

const NO_PANIC: &str = "no holder of this lock panics";

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(NO_PANIC)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.closed {
            let fits = state.queue.front().is_some_and(|(_, request)| {
                state.bytes_ahead == 0 || state.bytes_ahead + bytes(request) <= BYTES_AHEAD_MAX
            });
            if !fits {
                state = self.changed.wait(state).expect(NO_PANIC);
                continue;
            }
            let (ticket, request) = state.queue.pop_front().expect("it was just seen");
            let bytes = bytes(&request);
            state.bytes_ahead += bytes;
            state.taken.insert(ticket, None);
            drop(state);
            let loaded = self.load(&request);
            state = self.lock();
            if let Some(place) = state.taken.get_mut(&ticket) {
                *place = Some((request, loaded));
            } else {
                state.bytes_ahead -= bytes; // forgotten meanwhile
            }
            self.changed.notify_all();
        }
    }

    fn load(&self, request: &PictureRequest) -> Loaded {
        if self.cached.contains(request) {
            return Loaded::Cached;
        }
        // A decoder that panics on a damaged file must not take the run down with it.
        let picture = std::panic::catch_unwind(|| request.load(&self.roots));
        let reason = match picture {
            Ok(Ok(picture)) => return Loaded::Picture(picture),
            Ok(Err(error)) => error_chain(&error),
            Err(_) => "the decoder panicked".to_owned(),
        };
        if self.lock().warned.insert(request.path.clone()) {
            tracing::warn!(path = request.path, reason, "picture skipped");
        }
        Loaded::Skipped(reason)
    }
}

fn bytes(request: &PictureRequest) -> usize {
    request.width as usize * request.height as usize * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str) -> PictureRequest {
        PictureRequest { path: path.to_owned(), width: 64, height: 64, crop: None, flip: false }
    }

    fn ticket(generation: u64, index: usize) -> Ticket {
        Ticket { generation, step: 0, slot: 0, index }
    }

    #[test]
    fn pictures_come_by_ticket_and_bad_ones_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        image::RgbImage::new(80, 80).save(folder.path().join("a.png")).unwrap();
        let prefetch = Prefetch::new(DataRoots::at(folder.path()), 2, CachedPictures::default());
        prefetch.request(ticket(1, 0), request("a.png"));
        prefetch.request(ticket(1, 1), request("b.png"));
        let skipped = prefetch.take(ticket(1, 1)).unwrap().1;
        assert!(matches!(skipped, Loaded::Skipped(reason) if reason.contains("cannot open the file")));
        assert!(matches!(prefetch.take(ticket(1, 0)).unwrap().1, Loaded::Picture(_)));
        assert_eq!(prefetch.shared.lock().bytes_ahead, 0);
    }

    #[test]
    fn forgetting_a_generation_wakes_who_waits_and_frees_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let prefetch = Prefetch::new(DataRoots::at(folder.path()), 1, CachedPictures::default());
        (0..50).for_each(|index| prefetch.request(ticket(1, index), request("b.png")));
        prefetch.request(ticket(2, 0), request("b.png"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| prefetch.take(ticket(1, 49)));
            prefetch.forget(1);
            // It may have been ready just before.
            let _ = waiting.join().unwrap();
        });
        assert!(prefetch.take(ticket(1, 3)).is_none());
        assert!(prefetch.take(ticket(2, 0)).is_some());
        assert!(prefetch.shared.lock().taken.is_empty());
    }
}
