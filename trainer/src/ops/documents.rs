//! The documents of a batch: attention stays inside each, and positions begin anew in each.

use std::ops::Range;

/// Where the sequences of a batch are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    time: usize,
    /// Where in each sequence documents begin, ascending; the first at 0.
    starts: Vec<Vec<usize>>,
}

impl Documents {
    /// Each of `batch_size` sequences of `time` tokens as one.
    pub fn whole(batch_size: usize, time: usize) -> Self {
        Self::new(time, (0..batch_size).map(|_| &[][..]))
    }

    /// Sequences of `time` tokens in which documents begin at `starts`, ascending. What comes before the first of them goes
    /// on from elsewhere, and is a document here.
    pub fn new<'a>(time: usize, starts: impl Iterator<Item = &'a [u32]>) -> Self {
        let of_sequence = |starts: &[u32]| {
            let inside = starts.iter().map(|start| *start as usize).filter(|start| *start > 0 && *start < time);
            std::iter::once(0).chain(inside).collect()
        };
        Self { time, starts: starts.map(of_sequence).collect() }
    }

    /// Those of a sequence, in order.
    pub fn of(&self, sequence: usize) -> impl Iterator<Item = Range<usize>> {
        let starts = &self.starts[sequence];
        let ends = starts.iter().skip(1).copied().chain([self.time]);
        starts.iter().zip(ends).map(|(start, end)| *start..end)
    }

    /// The position of every token in its document: (batch × time).
    pub fn positions(&self) -> Vec<u32> {
        let of_all = (0..self.starts.len()).flat_map(|sequence| self.of(sequence));
        of_all.flat_map(|document| 0..document.len() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_of_one_document_and_positions_begin_anew() {
        let documents = Documents::new(5, [&[0, 3][..], &[2, 4], &[]].into_iter());
        let ends = |sequence| documents.of(sequence).map(|document| (document.start, document.end)).collect::<Vec<_>>();
        assert_eq!(ends(0), [(0, 3), (3, 5)]);
        assert_eq!(ends(1), [(0, 2), (2, 4), (4, 5)]);
        assert_eq!(ends(2), [(0, 5)]);
        assert_eq!(documents.positions(), [0, 1, 2, 0, 1, 0, 1, 0, 1, 0, 0, 1, 2, 3, 4]);
        assert_eq!(Documents::whole(2, 3).positions(), [0, 1, 2, 0, 1, 2]);
    }
}
