//! Tables of some megabytes that are read at random, on huge pages where the system has them: on small ones nearly every
//! read misses the translation cache too, which made English a quarter slower.
#![allow(unsafe_code)] // typed views of mapped memory

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use super::bpe::Merge;
use super::cache::Bucket;
use super::vocabulary::Token;

/// Bytes of a huge page.
const PAGE: usize = 2 << 20;

/// Numbers and what is made of them: every pattern of bits is a value.
///
/// # Safety
/// No implementation for other types.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: numbers.
unsafe impl Plain for Bucket {}
// SAFETY: numbers.
unsafe impl Plain for Token {}
// SAFETY: numbers.
unsafe impl Plain for Merge {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}
// SAFETY: numbers.
unsafe impl Plain for [u32; 2] {}

/// A table that begins with zeros, in memory of its own.
pub(super) struct Huge<T: Plain> {
    memory: MmapMut,
    begin: usize,
    entries: usize,
    of: std::marker::PhantomData<T>,
}

impl<T: Plain> Huge<T> {
    /// A table of `entries` zeros; memory is taken as it is written to.
    pub(super) fn new(entries: usize) -> Self {
        let bytes = entries * size_of::<T>();
        let memory = MmapMut::map_anon(bytes + PAGE).expect("address space");
        #[cfg(target_os = "linux")]
        // Small pages serve as well if the system has no huge ones.
        let _ = memory.advise(memmap2::Advice::HugePage);
        let begin = memory.as_ptr().align_offset(PAGE);
        Self { memory, begin, entries, of: std::marker::PhantomData }
    }

    /// Begins to bring an entry nearer; nothing if there is none.
    #[inline(always)]
    pub(super) fn prefetch(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        if let Some(entry) = self.get(at) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: it reads nothing that the program sees, and every x86-64 processor has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(entry).cast()) };
        }
    }
}

impl<T: Plain> Deref for Huge<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: so many lie from `begin` on, which is aligned to a page; any bits are a value.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(self.begin).cast(), self.entries) }
    }
}

impl<T: Plain> DerefMut for Huge<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and it is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().add(self.begin).cast(), self.entries) }
    }
}

impl<T: Plain> std::fmt::Debug for Huge<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Huge").field("entries", &self.entries).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_begins_with_zeros_on_a_page_of_its_own_and_keeps_what_is_written() {
        for entries in [0, 1, 1000, 3 * PAGE / 8 + 1] {
            let mut table = Huge::<u64>::new(entries);
            assert_eq!((table.len(), table.as_ptr() as usize % PAGE), (entries, 0));
            assert!(table.iter().all(|entry| *entry == 0));
            table.iter_mut().zip(1..).for_each(|(entry, number)| *entry = number);
            assert!(table.iter().zip(1..).all(|(entry, number)| *entry == number));
        }
    }
}
