//! How the allocator is to deal with a daemon that needs much memory for one moment and then little for ever.

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

/// Returns what the allocator holds free to the system: the first pass over thousands of peers leaves twice as much behind
/// as is kept. Takes some milliseconds at most; does nothing where the C library is not glibc.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes a number and locks the allocator's arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
