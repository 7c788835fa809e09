//! Every operation against candle's forward, and its backward against finite differences of it in f64.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm as candle_rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_slow;
use tokenmill_shared::random::{Purpose, Stream};

use super::precision::Precision;
use super::quantised::{Codebook, Quantised};
use super::rope::{Rope, Scaling};
use super::{attention, cross_entropy, embedding, heads, linear, quantised_linear, rms_norm, rope, swiglu};
use crate::gradients::Gradients;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let stream = Stream::new(seed, Purpose::Initialise, 0);
    let count = shape.iter().product::<usize>() as u64;
    let values: Vec<f32> = (0..count).map(|at| stream.normal(at) as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1e-2f64, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * largest, "at {at}: {found} instead of {expected}");
    }
}

/// Checks gradients against central differences of `reference` in f64: the loss is Σ weights · output, the
/// inputs and the gradients found are given in the same order.
fn assert_slopes(
    inputs: &[&Tensor],
    found: &[Vec<f64>],
    weights: &Tensor,
    reference: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let weights = weights.to_dtype(DType::F64).unwrap();
    let loss = |inputs: &[Tensor]| -> f64 {
        let output = reference(inputs).unwrap();
        (output.reshape(weights.shape()).unwrap() * &weights).unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    let inputs: Vec<Tensor> = inputs.iter().map(|input| input.to_dtype(DType::F64).unwrap()).collect();
    for (which, gradient) in found.iter().enumerate() {
        let base = flat(&inputs[which]);
        let slope = |at: usize| {
            let at_shift = |shift: f64| {
                let mut moved = base.clone();
                moved[at] += shift;
                let mut inputs = inputs.clone();
                inputs[which] = Tensor::from_vec(moved, inputs[which].shape(), &Device::Cpu).unwrap();
                loss(&inputs)
            };
            (at_shift(1e-5) - at_shift(-1e-5)) / 2e-5
        };
        let expected: Vec<f64> = (0..base.len()).map(slope).collect();
        assert_close(gradient, &expected, 2e-5);
    }
}

/// A place for one parameter's gradient, and what was written there.
fn gradient_of(len: usize, write: impl FnOnce(&mut Gradients)) -> Vec<f64> {
    let mut gradients = Gradients::new([("w".to_owned(), Some((len, 0..len)))]).unwrap();
    write(&mut gradients);
    gradients.of(0).unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn linear_with_and_without_bias_and_residual() {
    let (x, w, b, residual) = (random(&[5, 7], 1), random(&[3, 7], 2), random(&[3], 3), random(&[5, 3], 4));
    let reference = |inputs: &[Tensor]| inputs[0].matmul(&inputs[1].t()?)?.broadcast_add(&inputs[2]);
    let expected = reference(&[x.clone(), w.clone(), b.clone()]).unwrap();
    assert_close(&flat(&linear::forward(&x, &w, Some(&b), Precision::F32).unwrap()), &flat(&expected), 1e-6);
    let added = linear::forward_add(&x, &w, Some(&b), &residual, Precision::F32).unwrap();
    assert_close(&flat(&added), &flat(&(expected + &residual).unwrap()), 1e-6);
    let dy = random(&[5, 3], 5);
    let dx = linear::backward_input(&dy, &w, Precision::F32).unwrap();
    let dw = gradient_of(21, |gradients| linear::backward_weight(&dy, &x, gradients.slot(0), Precision::F32).unwrap());
    let db = gradient_of(3, |gradients| linear::backward_bias(&dy, gradients.slot(0)).unwrap());
    let twice: Vec<f64> = flat(&dx).iter().map(|value| 2.0 * value).collect();
    assert_slopes(&[&x, &w, &b], &[flat(&dx), dw, db], &dy, reference);
    linear::backward_input_add(&dy, &w, &dx, Precision::F32).unwrap();
    assert_close(&flat(&dx), &twice, 1e-6);
}

/// bfloat16 keeps 8 bits: an operand is off by at most 2⁻⁹, a product of two by about twice that.
#[test]
fn products_in_bfloat16_are_near_and_results_are_bfloat16() {
    let (x, w, b, dy) = (random(&[5, 64], 1), random(&[3, 64], 2), random(&[3], 3), random(&[5, 3], 5));
    let exact = |precision| {
        let y = linear::forward(&x, &w, Some(&b), precision).unwrap();
        let dx = linear::backward_input(&dy, &w, precision).unwrap();
        let weight =
            |gradients: &mut Gradients| linear::backward_weight(&dy, &x, gradients.slot(0), precision).unwrap();
        (flat(&y), flat(&dx), gradient_of(192, weight))
    };
    let (near, exact) = (exact(Precision::Bf16), exact(Precision::F32));
    for (near, exact) in [(&near.0, &exact.0), (&near.1, &exact.1), (&near.2, &exact.2)] {
        assert_close(near, exact, 2e-2);
        assert_ne!(near, exact);
    }
    assert!(near.0.iter().all(|y| (*y as f32).to_bits() & 0xffff == 0));
}

#[test]
fn rms_norm_of_widths_with_and_without_a_rest() {
    for width in [8, 16, 19, 33] {
        let (x, w, dy) = (random(&[70, width], 1), random(&[width], 2), random(&[70, width], 3));
        let (y, scales) = rms_norm::forward(&x, &w, 1e-5).unwrap();
        assert_close(&flat(&y), &flat(&candle_rms_norm(&x, &w, 1e-5).unwrap()), 1e-6);
        let dx = x.zeros_like().unwrap();
        let dw = gradient_of(width, |gradients| {
            rms_norm::backward(&dy, &x, &w, &scales, &dx, false, gradients.slot(0)).unwrap();
        });
        let reference = |inputs: &[Tensor]| {
            let mean = inputs[0].sqr()?.mean_keepdim(1)?;
            inputs[0].broadcast_div(&(mean + 1e-5)?.sqrt()?)?.broadcast_mul(&inputs[1])
        };
        assert_slopes(&[&x, &w], &[flat(&dx), dw], &dy, reference);
    }
}

#[test]
fn swiglu_is_silu_of_the_gate_times_up() {
    let (gate, up, dy) = (random(&[3, 11], 1), random(&[3, 11], 2), random(&[3, 11], 3));
    let reference = |inputs: &[Tensor]| silu(&inputs[0])? * &inputs[1];
    let expected = reference(&[gate.clone(), up.clone()]).unwrap();
    assert_close(&flat(&swiglu::forward(&gate, &up).unwrap()), &flat(&expected), 1e-6);
    let (dgate, dup) = swiglu::backward(&dy, &gate, &up).unwrap();
    assert_slopes(&[&gate, &up], &[flat(&dgate), flat(&dup)], &dy, reference);
}

#[test]
fn rope_rotates_and_its_backward_rotates_back() {
    let table = Rope { theta: 10_000.0, head_dim: 6, scaling: Scaling::Default }.table(5);
    let x = random(&[2, 3, 5, 6], 1);
    let rotated = x.copy().unwrap();
    rope::forward(&rotated, &table).unwrap();
    let angle = |step: usize, index: usize| step as f64 / 10_000f64.powf(2.0 * index as f64 / 6.0);
    let angles: Vec<f64> = (0..5).flat_map(|step| (0..3).map(move |index| angle(step, index))).collect();
    let of = |function: fn(f64) -> f64| {
        let values: Vec<f32> = angles.iter().map(|angle| function(*angle) as f32).collect();
        Tensor::from_vec(values, (5, 3), &Device::Cpu).unwrap()
    };
    let expected = rope_slow(&x, &of(f64::cos), &of(f64::sin)).unwrap();
    assert_close(&flat(&rotated), &flat(&expected), 1e-6);
    rope::backward(&rotated, &table).unwrap();
    assert_close(&flat(&rotated), &flat(&x), 1e-6);
}

#[test]
fn heads_split_and_merge_are_inverse() {
    let x = random(&[2 * 5, 3 * 4], 1);
    let split = heads::split(&x, 2, 3).unwrap();
    let expected = x.reshape((2, 5, 3, 4)).unwrap().transpose(1, 2).unwrap().contiguous().unwrap();
    assert_eq!(flat(&split), flat(&expected));
    assert_eq!(flat(&heads::merge(&split).unwrap()), flat(&x));
}

#[test]
fn attention_is_causal_grouped_and_windowed() {
    for (time, window) in [(9, None), (9, Some(3)), (9, Some(1)), (70, Some(5))] {
        let (q, k, v) = (random(&[1, 4, time, 6], 1), random(&[1, 2, time, 6], 2), random(&[1, 2, time, 6], 3));
        let dout = random(&[1, 4, time, 6], 4);
        let mask: Vec<f64> = (0..time * time)
            .map(|at| (at / time, at % time))
            .map(|(i, j)| if j <= i && window.is_none_or(|window| i - j < window) { 0.0 } else { -1e30 })
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, time, time), &Device::Cpu).unwrap();
        let reference = |inputs: &[Tensor]| {
            let repeat =
                |x: &Tensor| x.unsqueeze(2)?.expand((1, 2, 2, time, 6))?.reshape((1, 4, time, 6))?.contiguous();
            let scores = (inputs[0].contiguous()?.matmul(&repeat(&inputs[1])?.t()?)? / 6f64.sqrt())?;
            let scores = scores.broadcast_add(&mask.to_dtype(scores.dtype())?)?;
            softmax_last_dim(&scores)?.matmul(&repeat(&inputs[2])?)
        };
        let (output, log_sums) = attention::forward(&q, &k, &v, window).unwrap();
        assert_close(&flat(&output), &flat(&reference(&[q.clone(), k.clone(), v.clone()]).unwrap()), 2e-6);
        let (dq, dk, dv) = attention::backward(&dout, (&q, &k, &v), &output, &log_sums, window).unwrap();
        if time < 20 {
            assert_slopes(&[&q, &k, &v], &[flat(&dq), flat(&dk), flat(&dv)], &dout, reference);
        }
    }
}

#[test]
fn cross_entropy_is_the_sum_over_labels_and_ignores_the_rest() {
    let (x, w) = (random(&[40, 6], 1), random(&[30, 6], 2));
    let labels: Vec<u32> =
        (0..40).map(|row| if row % 7 == 3 { cross_entropy::IGNORE } else { row * 11 % 30 }).collect();
    let kept: Vec<u32> = (0..40).filter(|row| labels[*row as usize] != cross_entropy::IGNORE).collect();
    let targets: Vec<u32> = kept.iter().map(|row| labels[*row as usize]).collect();
    let count = kept.len();
    let index = Tensor::from_vec(kept, count, &Device::Cpu).unwrap();
    let targets = Tensor::from_vec(targets, count, &Device::Cpu).unwrap();
    for smoothing in [0.0, 0.2] {
        let reference = |inputs: &[Tensor]| {
            let logits = inputs[0].index_select(&index, 0)?.matmul(&inputs[1].t()?)?;
            let nll = (candle_nn::loss::cross_entropy(&logits, &targets)? * count as f64)?;
            let all = (candle_nn::ops::log_softmax(&logits, 1)?.sum_all()? / -30.0)?;
            (nll * (1.0 - smoothing))? + (all * smoothing)?
        };
        let expected: f64 = flat(&reference(&[x.clone(), w.clone()]).unwrap())[0];
        let mut dx = None;
        let dw = gradient_of(180, |gradients| {
            let slot = gradients.slot(0);
            let (loss, gradient) =
                cross_entropy::forward_backward(&x, &w, &labels, (0.5, smoothing as f32), Precision::F32, slot)
                    .unwrap();
            let found = loss.smoothed(smoothing);
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
            assert_eq!(loss.tokens, count as u64);
            dx = Some(flat(&gradient));
        });
        let half = Tensor::new(0.5f64, &Device::Cpu).unwrap();
        assert_slopes(&[&x, &w], &[dx.unwrap(), dw], &half, reference);
        let evaluated = cross_entropy::forward(&x, &w, &labels, Precision::F32).unwrap();
        assert!((evaluated.smoothed(smoothing) / expected - 1.0).abs() < 1e-6);
    }

    let evaluated = cross_entropy::forward(&x, &w, &labels, Precision::F32).unwrap();
    let best = x.matmul(&w.t().unwrap()).unwrap().argmax(1).unwrap().to_vec1::<u32>().unwrap();
    let correct = best.iter().zip(&labels).filter(|(best, label)| best == label).count();
    assert_eq!((evaluated.correct, evaluated.tokens), (correct as u64, count as u64));
    assert!(cross_entropy::forward(&x, &w, &[30; 40], Precision::F32).unwrap_err().to_string().contains("label 30"));
}

#[test]
fn embedding_sums_the_gradients_of_repeated_ids() {
    let weight = random(&[9, 4], 1);
    let ids = [3, 0, 3, 8, 3];
    let index = Tensor::new(&ids, &Device::Cpu).unwrap();
    let found = embedding::forward(&ids, &weight).unwrap();
    assert_eq!(flat(&found), flat(&weight.index_select(&index, 0).unwrap()));
    let dy = random(&[5, 4], 2);
    let dw = gradient_of(36, |gradients| embedding::backward(&dy, &ids, gradients.slot(0)).unwrap());
    assert_slopes(&[&weight], &[dw], &dy, |inputs| inputs[0].index_select(&index, 0));
    assert!(embedding::forward(&[9], &weight).unwrap_err().to_string().contains("id 9"));
}

/// Values of a quantised weight in float32 are what its products are made of.
#[test]
fn quantised_linear_is_linear_with_the_restored_weight() {
    // More rows than fit one panel; blocks that cross rows and a last one that is short.
    for (output, input) in [(2100, 1000), (6, 37)] {
        let (x, bias, residual) = (random(&[5, input], 1), random(&[output], 2), random(&[5, output], 3));
        let (dy, weight) = (random(&[5, output], 4), flat_f32(&random(&[output, input], 5)));
        let kinds = [
            Quantised::four_bit(&weight, input, Codebook::Nf4, true),
            Quantised::four_bit(&weight, input, Codebook::Fp4, false),
            Quantised::int8(&weight, input, None),
        ];
        for quantised in &kinds {
            let restored = Tensor::from_vec(quantised.restored(), (output, input), &Device::Cpu).unwrap();
            for (precision, tolerance) in [(Precision::F32, 2e-6), (Precision::Bf16, 1e-2)] {
                let found = quantised_linear::forward(&x, quantised, Some(&bias), precision).unwrap();
                let expected = linear::forward(&x, &restored, Some(&bias), precision).unwrap();
                assert_close(&flat(&found), &flat(&expected), tolerance);
                let found = quantised_linear::forward_add(&x, quantised, None, &residual, precision).unwrap();
                let expected = linear::forward_add(&x, &restored, None, &residual, precision).unwrap();
                assert_close(&flat(&found), &flat(&expected), tolerance);
                let found = quantised_linear::backward_input(&dy, quantised, precision).unwrap();
                let expected = linear::backward_input(&dy, &restored, precision).unwrap();
                assert_close(&flat(&found), &flat(&expected), 2e-6);
                quantised_linear::backward_input_add(&dy, quantised, &found, precision).unwrap();
                assert_close(&flat(&found), &flat(&(expected * 2.0).unwrap()), 2e-6);
            }
        }
        let slopes = quantised_linear::backward_input(&dy, &kinds[0], Precision::F32).unwrap();
        let restored = Tensor::from_vec(kinds[0].restored(), (output, input), &Device::Cpu).unwrap();
        if output < 100 {
            assert_slopes(&[&x], &[flat(&slopes)], &dy, |inputs| {
                inputs[0].matmul(&restored.to_dtype(DType::F64)?.t()?)
            });
        }
    }
    let weight = Quantised::int8(&[1.0; 6], 3, None);
    assert!(quantised_linear::forward(&random(&[2, 4], 1), &weight, None, Precision::F32).is_err());
}

#[test]
fn quantised_products_have_the_same_bits_whatever_the_threads() {
    let weight = flat_f32(&random(&[2100, 1000], 1));
    let (x, dy) = (random(&[7, 1000], 2), random(&[7, 2100], 3));
    let bits = |threads: usize, quantised: &Quantised| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let y = quantised_linear::forward(&x, quantised, None, Precision::F32).unwrap();
            let dx = quantised_linear::backward_input(&dy, quantised, Precision::F32).unwrap();
            let bits = |tensor: &Tensor| -> Vec<u32> { flat_f32(tensor).iter().map(|value| value.to_bits()).collect() };
            (bits(&y), bits(&dx))
        })
    };
    let make = |which: usize| match which {
        0 => Quantised::four_bit(&weight, 1000, Codebook::Nf4, true),
        1 => Quantised::int8(&weight, 1000, None),
        _ => Quantised::int8(&weight, 1000, Some(3.0)),
    };
    for which in 0..3 {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| make(which));
        assert_eq!(one, make(which));
        assert_eq!(bits(1, &one), bits(3, &one));
    }
}

/// Golden values of bitsandbytes: `tests/data/quantised.py`. Its activations have outliers in two columns. On a CPU it
/// multiplies by 6.200124e-5 for 127⁻², which is 6.200012e-5: all it returns is too large by 2 in 100,000.
#[test]
fn products_of_llm_int8_are_those_of_bitsandbytes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/quantised.safetensors");
    let golden = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let weight = flat_f32(&golden["weight"]);
    for threshold in [0.0, 6.0] {
        let quantised = Quantised::int8(&weight, 1100, Some(threshold));
        let found = quantised_linear::forward(&golden["x"], &quantised, None, Precision::F32).unwrap();
        assert_close(&flat(&found), &flat(&golden[&format!("y.{threshold:.0}")]), 2e-5);
    }
    let plain = Quantised::int8(&weight, 1100, None);
    let found = flat(&quantised_linear::forward(&golden["x"], &plain, None, Precision::F32).unwrap());
    let apart = |name: &str| {
        let values = flat(&golden[name]);
        found.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(apart("y.6") > 1e-3 && apart("y.6") < apart("y.0"), "{} {}", apart("y.6"), apart("y.0"));
}

fn flat_f32(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}
