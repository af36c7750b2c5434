//! How the allocator is to deal with a daemon that needs much memory for one moment and then little for ever.

use rustix::mm::{Advice, madvise};

/// The largest page that a kernel may have been built for, in bytes.
const LARGEST_PAGE: usize = 64 << 10;

/// Lets all threads share one arena and returns large blocks to the system as soon as they are free: what one thread gave
/// back another can use. To be called before there are threads; does nothing where the C library is not glibc.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes numbers and locks the allocator itself. It fails only for numbers out of range.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Returns what only the start needed: what the allocator holds free, since the first pass over thousands of peers leaves
/// twice as much behind as is kept, and the pages of the program. Takes some milliseconds at most.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number and locks the allocator's arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
    unmap_program();
}

/// Unmaps the code and the constants of the program: the kernel maps sixteen pages for each that is touched, so that after
/// the start most of them are there. What runs on comes back from the page cache.
fn unmap_program() {
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let start = &raw const __executable_start;
    let len = (&raw const etext).addr() - start.addr();
    let whole_pages = len - len % LARGEST_PAGE;
    // SAFETY: between these symbols, which every linker sets, lies only what is mapped from the file and never written: a
    // page that is touched again holds the same as before.
    // It fails where memory is locked, and then nothing is lost.
    let _ = unsafe { madvise(start.cast_mut().cast(), whole_pages, Advice::LinuxDontNeed) };
}
