//! Every operation on the GPU beside float64, where candle differentiates what is written in the field's formulas:
//! float32 within 1e-5 of it, as the CPU's operations are; bf16 within bounds that the rounding of its results and
//! operands explains. Each is run twice and gives the same bits.
//!
//! Distances are of the largest value of a result. bf16 keeps 8 bits: what is rounded once is off by 2⁻⁸ = 3.9e-3 of itself at most.

use std::ops::Range;

use candle_core::{D, DType, Device as CpuDevice, Result, Tensor, Var};
use half::bf16;
use tokenmill_shared::random::{Purpose, Stream};

use super::GPU;
use crate::cuda::device::{Element, Memory, Span};
use crate::cuda::embedding::EmbeddingOrder;
use crate::cuda::ops::{Branch, Heads, Norm, Ops, Statistics};
use crate::cuda::quantised::Weight;
use crate::model::{EmbeddingNoise, NormKind};
use crate::ops::activation::Activation;
use crate::ops::adamw::{Constants, Formula, Update};
use crate::ops::alibi;
use crate::ops::cross_entropy::IGNORE;
use crate::ops::documents::Documents;
use crate::ops::dropout::Dropout;
use crate::ops::quantised::{Codebook, Quantised};
use crate::ops::rope::{Rope, Scaling};

/// A result that is rounded once.
const ONCE: f64 = 4e-3;
/// A result that is rounded, of operands that were.
const TWICE: f64 = 8e-3;
/// Gradients of attention: its weights, their gradients and its output are rounded before they are multiplied.
const OFTEN: f64 = 1.6e-2;
/// What has no bf16 in it but its inputs, which are the same in float64.
const EXACT: f64 = 1e-5;

/// A result: its name, what the GPU found, what float64 says, and how far bf16 may be from it.
type Found = (&'static str, Vec<f32>, Tensor, f64);

/// Checks an operation in both types, and that it repeats.
#[track_caller]
fn assert_near(name: &str, operation: impl Fn(&Ops) -> Vec<Found>) {
    for element in [Element::F32, Element::Bf16] {
        let ops = ops(element);
        let (found, again) = (operation(&ops), operation(&ops));
        for ((what, values, expected, bound), (_, second, ..)) in found.iter().zip(&again) {
            let apart = apart(values, expected);
            println!("{name} {element:?}: {what} {apart:.1e}");
            let bound = if element == Element::F32 { EXACT } else { *bound };
            assert!(apart <= bound, "{name} {element:?}: {what} is {apart:.1e} of the largest value from float64");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert!(bits(values) == bits(second), "{name} {element:?}: {what} has other bits in a second run");
        }
    }
}

/// max|Δ| / max|expected|.
#[track_caller]
fn apart(found: &[f32], expected: &Tensor) -> f64 {
    let expected: Vec<f64> = expected.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()));
    let apart = found.iter().zip(&expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    apart.fold(0.0, f64::max) / expected.iter().fold(1e-30f64, |largest, value| largest.max(value.abs()))
}

fn ops(element: Element) -> Ops {
    Ops { device: GPU.clone(), element }
}

fn plain() -> Ops {
    ops(Element::F32)
}

fn random(shape: &[usize], seed: u64) -> Tensor {
    let stream = Stream::new(seed, Purpose::Initialise, 0);
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|at| stream.normal(at) as f32).collect();
    Tensor::from_vec(values, shape, &CpuDevice::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_dtype(DType::F32).unwrap().to_vec1().unwrap()
}

/// The tensor in the type of `ops`, in float64, and on the GPU.
fn send(ops: &Ops, tensor: &Tensor) -> (Tensor, Memory) {
    let values = flat(tensor);
    let memory = ops.device.allocate(values.len(), ops.element.size()).unwrap();
    let half: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
    let values = match ops.element {
        Element::F32 => {
            ops.device.upload(&values, memory.span).unwrap();
            values
        }
        Element::Bf16 => {
            ops.device.upload(&half, memory.span).unwrap();
            half.into_iter().map(bf16::to_f32).collect()
        }
    };
    let rounded = Tensor::from_vec(values, tensor.shape(), &CpuDevice::Cpu).unwrap();
    (rounded.to_dtype(DType::F64).unwrap(), memory)
}

/// Random values, in float64 and on the GPU.
fn given(ops: &Ops, shape: &[usize], seed: u64) -> (Tensor, Memory) {
    send(ops, &random(shape, seed))
}

fn words(values: &[u32]) -> Memory {
    let memory = GPU.allocate(values.len(), 4).unwrap();
    GPU.upload(values, memory.span).unwrap();
    memory
}

/// Memory for a result.
fn room(ops: &Ops, count: usize) -> Memory {
    ops.device.allocate(count, ops.element.size()).unwrap()
}

fn read(ops: &Ops, span: Span, count: usize) -> Vec<f32> {
    match ops.element {
        Element::F32 => {
            let mut values = vec![0f32; count];
            ops.device.download(span, &mut values).unwrap();
            values
        }
        Element::Bf16 => {
            let mut values = vec![bf16::ZERO; count];
            ops.device.download(span, &mut values).unwrap();
            values.into_iter().map(bf16::to_f32).collect()
        }
    }
}

/// What `reference` makes of the inputs in float64, and the slopes of Σ weights · that.
fn differentiated<const N: usize>(
    inputs: [&Tensor; N],
    weights: &Tensor,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Tensor, [Tensor; N]) {
    let variables = inputs.map(|input| Var::from_tensor(input).unwrap());
    let tensors: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let output = reference(&tensors).unwrap();
    let loss = (output.reshape(weights.shape()).unwrap() * weights).unwrap().sum_all().unwrap();
    let slopes = loss.backward().unwrap();
    (
        output.detach(),
        variables.map(|variable| slopes.get(&variable).cloned().unwrap_or_else(|| variable.zeros_like().unwrap())),
    )
}

#[test]
fn products_and_the_gradients_of_both_sides() {
    assert_near("linear", |ops| {
        let (rows, input, output) = (70, 48, 36);
        let ((x, x_at), (w, w_at), (dy, dy_at)) =
            (given(ops, &[rows, input], 1), given(ops, &[output, input], 2), given(ops, &[rows, output], 3));
        let (y, [dx, dw]) = differentiated([&x, &w], &dy, |at| at[0].matmul(&at[1].t()?));
        let (to_y, to_dx, to_dw) = (room(ops, rows * output), room(ops, rows * input), room(&plain(), output * input));
        let [x, w, dy_matrix] =
            [(&x_at, input), (&w_at, input), (&dy_at, output)].map(|(memory, stride)| ops.matrix(memory.span, stride));
        let product = |a, b, c, sizes, add| ops.device.multiply((a, b, c), sizes, add).unwrap();
        product(x, w.t(), ops.matrix(to_y.span, output), (rows, output, input), false);
        product(dy_matrix, w, ops.matrix(to_dx.span, input), (rows, input, output), false);
        let of_weight = plain().matrix(to_dw.span, input);
        product(dy_matrix.t(), x, of_weight, (output, input, rows), false);
        product(dy_matrix.t(), x, of_weight, (output, input, rows), true);
        vec![
            ("y", read(ops, to_y.span, rows * output), y, ONCE),
            ("dx", read(ops, to_dx.span, rows * input), dx, ONCE),
            ("dw, twice", read(&plain(), to_dw.span, output * input), (dw * 2.0).unwrap(), EXACT),
        ]
    });
}

#[test]
fn norms_with_the_branch_that_is_added_first() {
    for (kind, with_bias) in
        [(NormKind::Rms { offset: 0.0 }, false), (NormKind::Rms { offset: 1.0 }, false), (NormKind::Layer, true)]
    {
        assert_near(&format!("{kind:?}"), |ops| {
            let plain = plain();
            let (rows, width) = (150, 36);
            let ((x, x_at), (branch, branch_at), (branch_bias, branch_bias_at)) =
                (given(&plain, &[rows, width], 1), given(ops, &[rows, width], 2), given(&plain, &[width], 3));
            let ((w, w_at), (bias, bias_at), (dy, dy_at)) =
                (given(&plain, &[width], 4), given(&plain, &[width], 5), given(ops, &[rows, width], 6));
            let (dropout, mask) = dropping(&[rows, width]);
            let sum = (x + (branch.broadcast_add(&branch_bias).unwrap() * mask).unwrap()).unwrap();
            let reference = |at: &[Tensor]| {
                let (x, w) = (&at[0], &at[1]);
                if let NormKind::Rms { offset } = kind {
                    let scale = (x.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                    return x.broadcast_div(&scale)?.broadcast_mul(&(w + f64::from(offset))?);
                }
                let x = x.broadcast_sub(&x.mean_keepdim(1)?)?;
                let scale = (x.sqr()?.mean_keepdim(1)? + 1e-5)?.sqrt()?;
                x.broadcast_div(&scale)?.broadcast_mul(w)?.broadcast_add(&at[2])
            };
            let (y, [dx, dw, db]) = differentiated([&sum, &w, &bias], &dy, reference);
            let norm = Norm { weight: w_at.span, bias: with_bias.then_some(bias_at.span), kind, epsilon: 1e-5 };
            let (to_sum, to_y, to_dx) =
                (room(&plain, rows * width), room(ops, rows * width), room(&plain, rows * width));
            let (means, scales) = (room(&plain, rows), room(&plain, rows));
            let statistics = Statistics { means: means.span, scales: scales.span };
            let (rounded, pieces) = (room(ops, rows * width), room(&plain, Ops::pieces(rows, width)));
            let (to_dw, to_db) = (room(&plain, width), room(&plain, width));
            let branch = Branch { values: branch_at.span, bias: Some(branch_bias_at.span), dropout: Some(dropout) };
            let size = (rows, width);
            ops.norm(Some(x_at.span), Some(branch), (to_sum.span, to_y.span), statistics, &norm, size).unwrap();
            let alone = room(&plain, rows * width);
            ops.add_branch(x_at.span, branch, alone.span, size).unwrap();
            let input = (to_sum.span, statistics);
            let of_weights = ((to_dw.span, false), with_bias.then_some((to_db.span, false)));
            ops.norm_weights_backward(dy_at.span, input, &norm, of_weights, pieces.span, size).unwrap();
            ops.norm_backward(dy_at.span, input, &norm, (to_dx.span, false), rounded.span, size).unwrap();
            ops.norm_backward(dy_at.span, input, &norm, (to_dx.span, true), rounded.span, size).unwrap();
            let twice = (dx * 2.0).unwrap();
            let mut found = vec![
                ("sum", read(&plain, to_sum.span, rows * width), sum.clone(), EXACT),
                ("sum alone", read(&plain, alone.span, rows * width), sum, EXACT),
                ("y", read(ops, to_y.span, rows * width), y, ONCE),
                ("dx, twice", read(&plain, to_dx.span, rows * width), twice.clone(), EXACT),
                ("dx, rounded", read(ops, rounded.span, rows * width), twice, ONCE),
                ("dw", read(&plain, to_dw.span, width), dw, EXACT),
            ];
            if with_bias {
                found.push(("db", read(&plain, to_db.span, width), db, EXACT));
            }
            found
        });
    }
}

/// A dropout, and its mask.
fn dropping(shape: &[usize]) -> (Dropout, Tensor) {
    let dropout = Dropout { rate: 0.3, stream: Stream::new(7, Purpose::Dropout, 2) };
    let mut mask = vec![1f32; shape.iter().product()];
    dropout.apply_to(&mut mask);
    let mask = Tensor::from_vec(mask, shape, &CpuDevice::Cpu).unwrap();
    (dropout, mask.to_dtype(DType::F64).unwrap())
}

#[test]
fn biases_and_their_gradients() {
    assert_near("bias", |ops| {
        let (rows, width) = (300, 40);
        let ((x, x_at), (bias, bias_at)) = (given(ops, &[rows, width], 1), given(&plain(), &[width], 2));
        let (gradient, pieces) = (room(&plain(), width), room(&plain(), Ops::pieces(rows, width)));
        ops.bias_backward((x_at.span, ops.element), (gradient.span, false), pieces.span, (rows, width)).unwrap();
        ops.add_bias(x_at.span, bias_at.span, (rows, width)).unwrap();
        vec![
            ("sum", read(ops, x_at.span, rows * width), x.broadcast_add(&bias).unwrap(), ONCE),
            ("gradient", read(&plain(), gradient.span, width), x.sum(0).unwrap(), EXACT),
        ]
    });
}

/// Sizes of a batch in attention: heads of `head_dim`, two query heads for each of keys and values.
fn heads(batch: usize, time: usize, head_dim: usize) -> Heads {
    let in_blocks = Heads::in_blocks(4, 2, head_dim);
    Heads { batch: batch as i32, time: time as i32, scale: 1.0 / (head_dim as f32).sqrt(), ..in_blocks }
}

/// Where documents begin and end, on the GPU.
struct Cut {
    starts: Memory,
    ends: Memory,
}

impl Cut {
    fn new(documents: &Documents, batch: usize) -> Self {
        let all: Vec<_> = (0..batch).flat_map(|sequence| documents.of(sequence)).collect();
        let of = |place: fn(&Range<usize>) -> usize| {
            let each = |document: &Range<usize>| vec![place(document) as u32; document.len()];
            words(&all.iter().flat_map(each).collect::<Vec<_>>())
        };
        Self { starts: of(|document| document.start), ends: of(|document| document.end) }
    }

    fn heads(&self, heads: Heads) -> Heads {
        Heads { starts: self.starts.span.at, ends: self.ends.span.at, ..heads }
    }
}

#[test]
fn rotations_and_those_back() {
    // Of the second sequence another document begins at 4.
    let cut = Cut::new(&Documents::new(9, [&[][..], &[4]].into_iter()), 2);
    for (features, interleaved, is_cut) in [(16, false, false), (16, true, true), (8, false, true), (6, true, false)] {
        assert_near(&format!("rope of {features}, interleaved {interleaved}, documents {is_cut}"), |ops| {
            let heads = heads(2, 9, 16);
            let heads = if is_cut { cut.heads(heads) } else { heads };
            let position = |row: usize| row % 9 - if is_cut && row >= 13 { 4 } else { 0 };
            let (rows, width) = (18, heads.width as usize);
            let (x, x_at) = given(ops, &[rows, width], 1);
            let table = Rope { theta: 100.0, features, scaling: Scaling::Default, interleaved }.table(9);
            let half = features / 2;
            let [cosines, sines] = [table.cosines(), table.sines()]
                .map(|values| send(&plain(), &Tensor::from_slice(values, (9, half), &CpuDevice::Cpu).unwrap()));
            let value = |tensor: &Tensor| -> Vec<f64> { tensor.flatten_all().unwrap().to_vec1().unwrap() };
            let (mut rotated, cos, sin) = (value(&x), value(&cosines.0), value(&sines.0));
            for (row, values) in rotated.chunks_mut(width).enumerate() {
                // Queries and keys; values stay.
                for head in values[..6 * 16].chunks_mut(16) {
                    for pair in 0..half {
                        let (low, high) = if interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + half) };
                        let at = position(row) * half + pair;
                        let (c, s) = (cos[at], sin[at]);
                        (head[low], head[high]) = (head[low] * c - head[high] * s, head[high] * c + head[low] * s);
                    }
                }
            }
            let rotated = Tensor::from_vec(rotated, (rows, width), &CpuDevice::Cpu).unwrap();
            let tables = (cosines.1.span, sines.1.span);
            ops.rope(x_at.span, tables, (half, interleaved), heads, false).unwrap();
            let forward = read(ops, x_at.span, rows * width);
            ops.rope(x_at.span, tables, (half, interleaved), heads, true).unwrap();
            vec![("forward", forward, rotated, ONCE), ("back", read(ops, x_at.span, rows * width), x, TWICE)]
        });
    }
}

/// The heads from `first` on of rows (N, W): (N, heads, head_dim).
fn heads_of(x: &Tensor, first: usize, count: usize, head_dim: usize) -> Result<Tensor> {
    x.narrow(1, first * head_dim, count * head_dim)?.reshape(((), count, head_dim))
}

#[test]
fn norms_of_heads() {
    assert_near("norms of heads", |ops| {
        let heads = heads(2, 35, 20);
        let (rows, width) = (70, heads.width as usize);
        let plain = plain();
        let ((x, x_at), (dy, dy_at)) = (given(ops, &[rows, width], 1), given(ops, &[rows, width], 2));
        let ((q, q_at), (k, k_at)) = (given(&plain, &[20], 3), given(&plain, &[20], 4));
        let reference = |at: &[Tensor]| {
            let normed = |first, count, weight: &Tensor| {
                let x = heads_of(&at[0], first, count, 20)?;
                let scale = (x.sqr()?.mean_keepdim(2)? + 1e-5)?.sqrt()?;
                x.broadcast_div(&scale)?.broadcast_mul(weight)?.reshape((rows, ()))
            };
            Tensor::cat(&[normed(0, 4, &at[1])?, normed(4, 2, &at[2])?, at[0].narrow(1, 120, 40)?], 1)
        };
        let (y, [dx, dq, dk]) = differentiated([&x, &q, &k], &dy, reference);
        let norms = [&q_at, &k_at].map(|weight| Norm {
            weight: weight.span,
            bias: None,
            kind: NormKind::Rms { offset: 0.0 },
            epsilon: 1e-5,
        });
        let to_y = room(ops, rows * width);
        ops.head_norms(x_at.span, to_y.span, &norms, heads).unwrap();
        let (to_dq, to_dk) = (room(&plain, 20), room(&plain, 20));
        let pieces = room(&plain, Ops::head_pieces(rows, 4, 20));
        let gradients = Some([(to_dq.span, false), (to_dk.span, false)]);
        ops.head_norms_backward(dy_at.span, x_at.span, &norms, gradients, pieces.span, heads).unwrap();
        vec![
            ("y", read(ops, to_y.span, rows * width), y, ONCE),
            ("dx", read(ops, dy_at.span, rows * width), dx, ONCE),
            ("dq", read(&plain, to_dq.span, 20), dq, EXACT),
            ("dk", read(&plain, to_dk.span, 20), dk, EXACT),
        ]
    });
}

#[test]
fn activations_alone_and_gated() {
    for kind in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
        for gated in [false, true] {
            assert_near(&format!("{kind:?}, gated {gated}"), |ops| {
                let (rows, width) = (9, 40);
                let all = if gated { 2 * width } else { width };
                let ((x, x_at), (bias, bias_at), (dy, dy_at)) =
                    (given(ops, &[rows, all], 1), given(&plain(), &[all], 2), given(ops, &[rows, width], 3));
                let reference = |at: &[Tensor]| {
                    let x = at[0].broadcast_add(&bias)?;
                    let first = x.narrow(1, 0, width)?.contiguous()?;
                    let activated = match kind {
                        Activation::Silu => first.silu(),
                        Activation::Gelu => first.gelu_erf(),
                        // candle's gelu is the tanh form.
                        Activation::GeluTanh => first.gelu(),
                    };
                    if gated { activated? * x.narrow(1, width, width)?.contiguous()? } else { activated }
                };
                let (y, [dx]) = differentiated([&x], &dy, reference);
                let to_y = room(ops, rows * width);
                ops.activation(kind, x_at.span, Some(bias_at.span), to_y.span, gated, (rows, width)).unwrap();
                ops.activation_backward(kind, dy_at.span, x_at.span, gated, (rows, width)).unwrap();
                vec![
                    ("y", read(ops, to_y.span, rows * width), y, TWICE),
                    ("dx", read(ops, x_at.span, rows * all), dx, OFTEN),
                ]
            });
        }
    }
}

/// Of heads that tensor cores take (64 and 128), and others; of blocks that are not full.
#[test]
fn attention_is_causal_grouped_windowed_penalised_capped_dropped_and_inside_documents() {
    for (head_dim, time, window, penalised, starts, (softcap, rate)) in [
        (8, 37, 0, false, &[][..], (0.0, 0.0)),
        (20, 70, 9, false, &[], (0.0, 0.0)),
        (16, 40, 0, true, &[], (0.0, 0.3)),
        (16, 70, 0, false, &[1, 30, 69], (1.5, 0.0)),
        (64, 150, 0, false, &[], (0.0, 0.0)),
        (64, 70, 30, true, &[], (0.0, 0.3)),
        (64, 70, 30, false, &[], (1.5, 0.3)),
        (64, 300, 0, false, &[3, 130, 140, 290], (0.0, 0.0)),
        (64, 150, 40, true, &[100], (0.0, 0.0)),
        (128, 130, 0, false, &[], (0.0, 0.3)),
        (128, 70, 40, false, &[], (0.0, 0.0)),
        (128, 150, 0, false, &[64, 65, 130], (0.0, 0.0)),
    ] {
        let dropout = Dropout { rate, stream: Stream::new(7, Purpose::Dropout, 2) };
        let mut mask = vec![1f32; 8 * time * time];
        dropout.apply_to(&mut mask);
        let mask = Tensor::from_vec(mask, (2, 4, time, time), &CpuDevice::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        // The second sequence is whole.
        let documents = Documents::new(time, [starts, &[]].into_iter());
        let cut = Cut::new(&documents, 2);
        let name = format!(
            "attention of {head_dim}, {time} tokens, window {window}, slopes {penalised}, cut {starts:?}, cap {softcap}, dropped {rate}"
        );
        assert_near(&name, |ops| {
            let heads = Heads { window, softcap, rate, key: dropout.stream.key(), ..heads(2, time, head_dim) };
            let heads = if starts.is_empty() { heads } else { cut.heads(heads) };
            let document = |batch: usize, at: usize| documents.of(batch).position(|document| document.contains(&at));
            let (rows, width, out_width) = (2 * time, heads.width as usize, 4 * head_dim);
            let ((qkv, qkv_at), (dout, dout_at)) = (given(ops, &[rows, width], 1), given(ops, &[rows, out_width], 2));
            let slopes = alibi::slopes(4);
            let added: Vec<f64> = (0..8 * time * time)
                .map(|at| (at / time / time / 4, at / time / time % 4, at / time % time, at % time))
                .map(|(batch, head, query, key)| {
                    let is_seen = key <= query
                        && (window == 0 || query - key < window as usize)
                        && document(batch, query) == document(batch, key);
                    let penalty = if penalised { f64::from(slopes[head]) * (query as f64 - key as f64) } else { 0.0 };
                    if is_seen { -penalty } else { -1e30 }
                })
                .collect();
            let added = Tensor::from_vec(added, (2, 4, time, time), &CpuDevice::Cpu).unwrap();
            let reference = |at: &[Tensor]| {
                let of = |first, count| {
                    let x = heads_of(&at[0], first, count, head_dim)?.reshape((2, time, count, head_dim))?;
                    let x = x.transpose(1, 2)?.unsqueeze(2)?.expand((2, count, 4 / count, time, head_dim))?;
                    x.contiguous()?.reshape((2, 4, time, head_dim))
                };
                let (q, k, v) = (of(0, 4)?, of(4, 2)?, of(6, 2)?);
                let mut scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(heads.scale))?;
                if softcap > 0.0 {
                    scores = ((scores / f64::from(softcap))?.tanh()? * f64::from(softcap))?;
                }
                let weights = (scores + &added)?.exp()?;
                let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
                (weights * &mask)?.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((rows, out_width))
            };
            let (out, [dqkv]) = differentiated([&qkv], &dout, reference);
            let slopes_at = send(&plain(), &Tensor::new(&slopes[..], &CpuDevice::Cpu).unwrap()).1;
            let slopes = penalised.then_some(slopes_at.span);
            let (to_out, log_sums) = (room(ops, rows * out_width), room(&plain(), rows * 4));
            ops.attention(qkv_at.span, to_out.span, log_sums.span, slopes, heads).unwrap();
            let (delta, expanded, to_dqkv) =
                (room(&plain(), rows * 4), room(ops, 2 * rows * out_width), room(ops, rows * width));
            let inputs = (qkv_at.span, to_out.span, log_sums.span);
            let scratch = (delta.span, expanded.span);
            ops.attention_backward(dout_at.span, inputs, scratch, to_dqkv.span, slopes, heads).unwrap();
            vec![
                ("out", read(ops, to_out.span, rows * out_width), out, TWICE),
                ("dqkv", read(ops, to_dqkv.span, rows * width), dqkv, OFTEN),
            ]
        });
    }
}

#[test]
fn losses_and_gradients_of_logits() {
    for (vocab, smoothing, cap) in [(133, 0.0, None), (1030, 0.2, None), (133, 0.2, Some(1.5))] {
        assert_near(&format!("cross-entropy over {vocab}, smoothing {smoothing}, cap {cap:?}"), |ops| {
            let (rows, stride) = (30, vocab + 64 - vocab % 64);
            let logits = Tensor::cat(&[&random(&[rows, vocab], 1), &random(&[rows, stride - vocab], 2)], 1).unwrap();
            let (logits, logits_at) = send(ops, &logits);
            let labels: Vec<u32> =
                (0..rows as u32).map(|row| if row % 7 == 3 { IGNORE } else { row * 11 % vocab as u32 }).collect();
            let mut hits = vec![0f64; rows * vocab];
            let mut uniform = vec![0f64; rows * vocab];
            for (row, label) in labels.iter().enumerate().filter(|(_, label)| **label != IGNORE) {
                hits[row * vocab + *label as usize] = 1.0;
                uniform[row * vocab..][..vocab].fill(1.0 / vocab as f64);
            }
            let [hits, uniform] =
                [hits, uniform].map(|of| Tensor::from_vec(of, (rows, vocab), &CpuDevice::Cpu).unwrap());
            let log_p = |logits: &Tensor| {
                let mut logits = logits.narrow(1, 0, vocab)?.contiguous()?;
                if let Some(cap) = cap {
                    logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
                }
                logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)
            };
            let target = ((&hits * (1.0 - smoothing)).unwrap() + (&uniform * smoothing).unwrap()).unwrap();
            let (found_log_p, [gradient]) = differentiated([&logits], &(&target * -0.5).unwrap(), |at| log_p(&at[0]));
            let sums = [&hits, &uniform].map(|of| (of * &found_log_p).unwrap().sum_all().unwrap().neg().unwrap());
            let (labels_at, found, total) =
                (words(&labels), GPU.allocate(3 * rows, 8).unwrap(), GPU.allocate(3, 8).unwrap());
            let at = (logits_at.span, stride, vocab);
            let scales = Some((0.5, smoothing as f32));
            ops.cross_entropy(at, labels_at.span, found.span, (0, rows, rows), cap, scales).unwrap();
            ops.sum_doubles(total.span, found.span, 3, rows).unwrap();
            let mut sum = [0f64; 3];
            GPU.download(total.span, &mut sum).unwrap();
            let most = flat(&logits.narrow(1, 0, vocab).unwrap().argmax(1).unwrap());
            let correct = most.iter().zip(&labels).filter(|(most, label)| **most == **label as f32).count();
            assert_eq!(sum[2], correct as f64);
            let [nll, smooth] = sums;
            vec![
                ("nll", vec![sum[0] as f32], nll, EXACT),
                ("mean over the vocabulary", vec![sum[1] as f32], smooth, EXACT),
                ("gradient", read(ops, logits_at.span, rows * stride), gradient, ONCE),
            ]
        });
    }
}

#[test]
fn rows_of_an_embedding_and_the_gradients_they_get() {
    assert_near("embedding", |ops| {
        let plain = plain();
        let (rows, time, width, vocab) = (200, 50, 36, 60);
        // One id comes 50 times, which is two pieces.
        let ids: Vec<u32> = (0..rows as u32).map(|at| if at % 4 == 1 { 3 } else { at * 31 % 60 }).collect();
        let ((weight, weight_at), (positions, positions_at), (dx, dx_at)) =
            (given(&plain, &[vocab, width], 1), given(&plain, &[time, width], 2), given(&plain, &[rows, width], 3));
        let index = Tensor::new(&ids[..], &CpuDevice::Cpu).unwrap();
        // Of each sequence another document begins at 20.
        let starts: Vec<u32> = (0..rows as u32).map(|row| if row % 50 < 20 { 0 } else { 20 }).collect();
        let steps = starts.iter().zip(0..).map(|(start, row)| row % 50 - start).collect();
        let step = Tensor::from_vec(steps, rows, &CpuDevice::Cpu).unwrap();
        let (x, [dw]) = differentiated([&weight], &dx, |at| {
            (at[0].index_select(&index, 0)? * 1.5)? + positions.index_select(&step, 0)?
        });
        let (to_x, gradient) = (room(&plain, rows * width), GPU.zeros(vocab * width, 4).unwrap());
        let table = (weight_at.span, 1.5);
        let (ids_at, starts_at) = (words(&ids), words(&starts));
        let positions = (Some(positions_at.span), Some(starts_at.span));
        ops.embed(to_x.span, ids_at.span, table, positions, (rows, time, width)).unwrap();
        let order = EmbeddingOrder::new(&ids, None);
        let (order_at, partial) = (words(&order.words), room(&plain, order.partials * width));
        let to = (gradient.span, partial.span);
        ops.embed_backward(to, dx_at.span, (&order, order_at.span), 1.5, (rows, width)).unwrap();
        vec![
            ("x", read(&plain, to_x.span, rows * width), x, EXACT),
            ("gradient", read(&plain, gradient.span, vocab * width), dw, EXACT),
        ]
    });
}

#[test]
fn masks_and_noise_are_those_of_the_cpu() {
    let (dropout, mask) = dropping(&[4000]);
    assert_near("dropout", |ops| {
        let ((x, x_at), (y, y_at)) = (given(ops, &[4000], 1), given(ops, &[4000], 2));
        ops.dropout(y_at.span, x_at.span, dropout, true, 4000).unwrap();
        let added = read(ops, y_at.span, 4000);
        ops.dropout(y_at.span, x_at.span, dropout, false, 4000).unwrap();
        // Noise of the CPU: on 40 sequences of one token.
        let noise = EmbeddingNoise { alpha: 5.0, seed: 3, pass: 1 };
        let (stream, (embedded, embedded_at)) = (noise.stream(), given(&plain(), &[4000], 3));
        let expected: Vec<f64> = (0..4000).map(|at| (2.0 * stream.uniform(at) - 1.0) * noise.bound(1, 100)).collect();
        let noisy = (embedded + Tensor::from_vec(expected, 4000, &CpuDevice::Cpu).unwrap()).unwrap();
        ops.add_noise(embedded_at.span, stream, noise.bound(1, 100), 4000).unwrap();
        let masked = (x * &mask).unwrap();
        vec![
            ("added", added, (&masked + y).unwrap(), ONCE),
            ("set", read(ops, y_at.span, 4000), masked, ONCE),
            ("noise", read(&plain(), embedded_at.span, 4000), noisy, EXACT),
        ]
    });
}

#[test]
fn products_with_weights_in_4_and_8_bits() {
    let (rows, input, output) = (9, 52, 84);
    let values = flat(&random(&[output, input], 1));
    for quantised in [
        Quantised::four_bit(&values, input, Codebook::Nf4, false),
        Quantised::four_bit(&values, input, Codebook::Nf4, true),
        Quantised::four_bit(&values, input, Codebook::Fp4, true),
        Quantised::int8(&values, input, None),
    ] {
        assert_near("quantised", |ops| {
            let restored = Tensor::from_vec(quantised.restored(), (output, input), &CpuDevice::Cpu).unwrap();
            let weight = restored.to_dtype(DType::F64).unwrap();
            let ((x, x_at), to, y) =
                (given(ops, &[rows, input], 2), room(ops, output * input), room(ops, rows * output));
            Weight::new(ops, &quantised).unwrap().restore(ops, to.span).unwrap();
            let found = read(ops, to.span, output * input);
            if ops.element == Element::F32 {
                assert!(found == quantised.restored(), "float32 has the bits of the CPU");
            }
            let matrices = (ops.matrix(x_at.span, input), ops.matrix(to.span, input).t(), ops.matrix(y.span, output));
            ops.device.multiply(matrices, (rows, output, input), false).unwrap();
            let product = x.matmul(&weight.t().unwrap()).unwrap();
            vec![("weight", found, weight, ONCE), ("product", read(ops, y.span, rows * output), product, TWICE)]
        });
    }
}

#[test]
fn updates_norms_and_copies() {
    assert_near("adamw", |ops| {
        let plain = plain();
        let count = 3000;
        let inputs = [1, 2, 3, 4].map(|seed| random(&[count], seed));
        let second = inputs[3].sqr().unwrap();
        let sent = [&inputs[0], &inputs[1], &inputs[2], &second].map(|input| send(&plain, input));
        let [p, g, m, v] = [0, 1, 2, 3].map(|at| sent[at].0.clone());
        let update = Update {
            formula: Formula::Torch,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step: 3,
            gradient_scale: 0.5,
        };
        let g = (g * 0.5).unwrap();
        let squares = g.sqr().unwrap().sum_all().unwrap();
        let m = ((m * 0.9).unwrap() + (&g * (1.0 - 0.9)).unwrap()).unwrap();
        let v = ((v * 0.999).unwrap() + (g.sqr().unwrap() * (1.0 - 0.999)).unwrap()).unwrap();
        let root = ((v.sqrt().unwrap() / (1.0 - 0.999f64.powi(3)).sqrt()).unwrap() + 1e-8).unwrap();
        let step = (m.div(&root).unwrap() * (1e-2 / (1.0 - 0.9f64.powi(3)))).unwrap();
        let p = ((p * (1.0 - 1e-2 * 0.1)).unwrap() - step).unwrap();
        let (copy, rounded, sum) = (room(ops, count), room(ops, count), GPU.allocate(1, 8).unwrap());
        let in_bf16 = ops.element == Element::Bf16;
        let spans = [0, 1, 2, 3].map(|at| sent[at].1.span);
        ops.adamw(spans, in_bf16.then_some(copy.span), Constants::new(update), count).unwrap();
        let scratch = GPU.allocate(Ops::squares(count), 8).unwrap();
        ops.sum_of_squares(sum.span, spans[1], scratch.span, count).unwrap();
        let mut found_squares = [0f64];
        GPU.download(sum.span, &mut found_squares).unwrap();
        let mut found = vec![
            ("parameters", read(&plain, spans[0], count), p.clone(), EXACT),
            ("first moments", read(&plain, spans[2], count), m, EXACT),
            ("second moments", read(&plain, spans[3], count), v, EXACT),
            ("squares", vec![found_squares[0] as f32 / 4.0], squares, EXACT),
        ];
        if in_bf16 {
            ops.round_to_bf16(rounded.span, spans[0], count).unwrap();
            found.push(("copies", read(ops, copy.span, count), p.clone(), ONCE));
            found.push(("copies again", read(ops, rounded.span, count), p, ONCE));
        }
        found
    });
}
