//! The order in which the embedding's gradient is summed: the tokens of each id one after the other, in pieces of fixed
//! size, so that the bits do not depend on which block is first.

/// Tokens that one block sums.
pub const PIECE: usize = 32;

/// Words for the GPU: the tokens in order of their ids; pieces; joins of the pieces of one id. See `embedding.cuh`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EmbeddingOrder {
    /// All words: order, pieces and joins.
    pub words: Vec<u32>,
    /// Pieces, 4 words each, after the order.
    pub pieces: usize,
    /// Joins, 4 words each, after the pieces.
    pub joins: usize,
    /// Rows of partial sums.
    pub partials: usize,
}

impl EmbeddingOrder {
    /// Of the tokens of one micro-batch, but for those that are `padding`.
    pub fn new(ids: &[u32], padding: Option<u32>) -> Self {
        let mut sorted: Vec<u64> = ids.iter().zip(0u64..).map(|(id, at)| u64::from(*id) << 32 | at).collect();
        sorted.sort_unstable();
        let id_of = |key: u64| (key >> 32) as u32;
        let mut words: Vec<u32> = sorted.iter().map(|key| *key as u32).collect();
        let (mut pieces, mut joins, mut partials) = (Vec::new(), Vec::new(), 0);
        let mut start = 0;
        for run in sorted.chunk_by(|one, next| id_of(*one) == id_of(*next)) {
            let id = id_of(run[0]);
            if Some(id) == padding {
                start += run.len() as u32;
                continue;
            }
            if run.len() > PIECE {
                joins.push([partials, run.len().div_ceil(PIECE) as u32, id, 0]);
            }
            for part in run.chunks(PIECE) {
                let several = run.len() > PIECE;
                pieces.push([start, part.len() as u32, if several { partials } else { id }, u32::from(several)]);
                start += part.len() as u32;
                partials += u32::from(several);
            }
        }
        words.extend(pieces.iter().chain(&joins).flatten());
        Self { words, pieces: pieces.len(), joins: joins.len(), partials: partials as usize }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_in_one_piece_and_every_piece_of_an_id_is_joined() {
        let ids: Vec<u32> = (0..500).map(|at| if at % 3 == 0 { 7 } else { at * 31 % 90 }).collect();
        assert_order(&ids, None);
        assert_order(&ids, Some(7));
        assert_eq!(EmbeddingOrder::new(&[7; 3], Some(7)).pieces, 0);
    }

    fn assert_order(ids: &[u32], padding: Option<u32>) {
        let order = EmbeddingOrder::new(ids, padding);
        let (tokens, rest) = order.words.split_at(ids.len());
        let (pieces, joins) = rest.split_at(4 * order.pieces);
        assert_eq!(joins.len(), 4 * order.joins);
        assert!(order.words.len() <= super::super::buffers::order_words(ids.len()));
        let mut summed = vec![Vec::new(); 90];
        let mut partial = vec![Vec::new(); order.partials];
        for piece in pieces.chunks(4) {
            let part = &tokens[piece[0] as usize..(piece[0] + piece[1]) as usize];
            assert!(part.len() <= PIECE);
            let to = if piece[3] == 1 { &mut partial } else { &mut summed };
            to[piece[2] as usize].extend_from_slice(part);
        }
        for join in joins.chunks(4) {
            (join[0]..join[0] + join[1]).for_each(|at| summed[join[2] as usize].append(&mut partial[at as usize]));
        }
        assert!(partial.iter().all(Vec::is_empty));
        for (id, tokens) in summed.iter().enumerate() {
            let is_of = |at: &u32| ids[*at as usize] as usize == id && padding != Some(id as u32);
            let expected: Vec<u32> = (0..500).filter(is_of).collect();
            assert_eq!(*tokens, expected);
        }
    }
}
