//! Reading a SentencePiece model: the protobuf message `ModelProto`.
//!
//! Field numbers are those of `sentencepiece_model.proto`. Only what a conversion needs is kept; unknown fields
//! are passed over. Lengths are checked against what is left before anything is taken, so memory is bounded by
//! the file.

/// More pieces than this are no vocabulary; the largest known has 262,144.
const PIECES_LIMIT: usize = 1 << 22;

/// What a piece is for; the numbers of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// One piece of the vocabulary; its id is its position.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// How text is cut into pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    Unigram,
    Bpe,
}

/// A model as it was trained.
#[derive(Debug)]
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    pub algorithm: Algorithm,
    pub byte_fallback: bool,
    /// Ids of the unknown, first and last token; negative where there is none.
    pub unk_id: i32,
    pub bos_id: i32,
    pub eos_id: i32,
    pub unk_piece: String,
    pub bos_piece: String,
    pub eos_piece: String,
    /// Compiled rules of normalization; empty if it leaves text alone.
    pub charsmap: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    /// Whether spaces are written as `▁` before pieces, as all known models have it.
    pub marks_spaces_before: bool,
}

impl Model {
    /// Parses the bytes of a model file; `Err` says why they are none.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut model = Self {
            pieces: Vec::new(),
            algorithm: Algorithm::Unigram,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            unk_piece: "<unk>".to_owned(),
            bos_piece: "<s>".to_owned(),
            eos_piece: "</s>".to_owned(),
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            marks_spaces_before: true,
        };
        for field in Message(bytes) {
            match field? {
                (1, Value::Bytes(piece)) if model.pieces.len() < PIECES_LIMIT => model.pieces.push(parse_piece(piece)?),
                (1, _) => return Err(format!("it has more than {PIECES_LIMIT} pieces")),
                (2, Value::Bytes(trainer)) => model.read_trainer(trainer)?,
                (3, Value::Bytes(normalizer)) => model.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err("it has no pieces".to_owned());
        }
        Ok(model)
    }

    fn read_trainer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Message(bytes) {
            match field? {
                (3, Value::Number(1)) => self.algorithm = Algorithm::Unigram,
                (3, Value::Number(2)) => self.algorithm = Algorithm::Bpe,
                (3, _) => return Err("its model is neither BPE nor Unigram".to_owned()),
                (24, Value::Number(suffix)) => self.marks_spaces_before &= suffix == 0,
                (35, Value::Number(fallback)) => self.byte_fallback = fallback != 0,
                // Negative numbers of 32 bits are written with 64.
                (40, Value::Number(id)) => self.unk_id = id as i32,
                (41, Value::Number(id)) => self.bos_id = id as i32,
                (42, Value::Number(id)) => self.eos_id = id as i32,
                (45, Value::Bytes(piece)) => self.unk_piece = text(piece)?,
                (46, Value::Bytes(piece)) => self.bos_piece = text(piece)?,
                (47, Value::Bytes(piece)) => self.eos_piece = text(piece)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, bytes: &[u8]) -> Result<(), String> {
        for field in Message(bytes) {
            match field? {
                (2, Value::Bytes(charsmap)) => self.charsmap = charsmap.to_vec(),
                (3, Value::Number(add)) => self.add_dummy_prefix = add != 0,
                (4, Value::Number(remove)) => self.remove_extra_whitespaces = remove != 0,
                (5, Value::Number(escape)) => self.marks_spaces_before &= escape != 0,
                _ => {}
            }
        }
        Ok(())
    }
}

fn parse_piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Message(bytes) {
        match field? {
            (1, Value::Bytes(content)) => piece.text = text(content)?,
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => return Err(format!("a piece is of the unknown kind {kind}")),
                }
            }
            _ => {}
        }
    }
    if !piece.score.is_finite() {
        return Err(format!("the score of {:?} is no number", piece.text));
    }
    Ok(piece)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a piece is not UTF-8".to_owned())
}

/// The value of a field, by wire type.
#[derive(Debug, PartialEq)]
enum Value<'a> {
    Number(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a protobuf message, in order: number and value. The first error ends them.
struct Message<'a>(&'a [u8]);

impl<'a> Message<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), String> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.number()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().expect("four bytes"))),
            other => return Err(format!("it has a field of the wire type {other}")),
        };
        match tag >> 3 {
            0 => Err("it has a field without a number".to_owned()),
            number => Ok((number, value)),
        }
    }

    /// A number in base 128, lowest part first, of at most ten bytes.
    fn number(&mut self) -> Result<u64, String> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or_else(truncated)?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err("a number in it is longer than 64 bits".to_owned())
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let length = usize::try_from(length).map_err(|_| truncated())?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(truncated)?;
        self.0 = rest;
        Ok(taken)
    }
}

fn truncated() -> String {
    "it ends inside a field: it is truncated, or not a SentencePiece model".to_owned()
}

impl<'a> Iterator for Message<'a> {
    type Item = Result<(u64, Value<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
