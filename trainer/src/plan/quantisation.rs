//! How the frozen model is kept in fewer bits, and what flags of adapters do where there are none.

use tokenmill_shared::config::Compat;
use tokenmill_shared::{Error, Result};

use super::both;
use crate::arguments::TrainerArguments;
use crate::model::Quantisation;
use crate::ops::quantised::Codebook;

/// What the frozen weights are kept in. The combinations are those of MedicalGPT; what differs from it is said.
pub(super) fn quantisation(arguments: &TrainerArguments) -> Result<Option<Quantisation>> {
    let compat = arguments.data.is_compat(Compat::Medicalgpt);
    let (eight, four, qlora) = (arguments.load_in_8bit, arguments.load_in_4bit, arguments.qlora);
    if eight && four {
        return Err(both("--load_in_8bit", "--load_in_4bit"));
    }
    if arguments.int8_threshold.is_some_and(|threshold| !(0.0..f32::INFINITY).contains(&threshold)) {
        return Err(Error::config("--int8_threshold", "must be 0 (no outliers) or more"));
    }
    if arguments.int8_threshold.is_some() && !eight {
        eprintln!("--int8_threshold has no effect here: it is for --load_in_8bit");
    }
    let nf4 = Quantisation::FourBit { codebook: Codebook::Nf4, double: true };
    let (flag, quantisation) = match (eight, four, qlora) {
        (true, ..) => {
            if qlora {
                eprintln!("--qlora has no effect here: it is for 4 bits, and --load_in_8bit is given");
            }
            ("--load_in_8bit", Quantisation::Int8 { threshold: arguments.int8_threshold })
        }
        (_, true, true) => ("--load_in_4bit", nf4),
        (_, true, false) if compat => {
            ("--load_in_4bit", Quantisation::FourBit { codebook: Codebook::Fp4, double: false })
        }
        (_, true, false) => {
            eprintln!(
                "--load_in_4bit without --qlora: MedicalGPT takes FP4, which is less exact; NF4 with double quantisation is used, as with --qlora (for FP4: --compat medicalgpt)"
            );
            ("--load_in_4bit", nf4)
        }
        (_, false, true) if compat => {
            eprintln!("--qlora has no effect here: without --load_in_4bit MedicalGPT does not quantise");
            return Ok(None);
        }
        (_, false, true) => {
            eprintln!("--qlora without --load_in_4bit: the model is loaded in 4 bits, as if both were given");
            ("--qlora", nf4)
        }
        (false, false, false) => return Ok(None),
    };
    if !arguments.use_peft {
        let reason = format!("is false, and {flag} asks for quantised weights, which cannot be trained");
        return Err(Error::config(
            "--use_peft",
            format!("{reason}; train adapters with --use_peft true, or remove {flag}"),
        ));
    }
    Ok(Some(quantisation))
}

/// A flag for adapters does nothing where there are none, or where an adapter brings its own settings.
pub(super) fn say_ignored_adapter_flags(arguments: &TrainerArguments) {
    let default = TrainerArguments::default();
    let given = [
        ("--lora_rank", arguments.lora_rank != default.lora_rank),
        ("--lora_alpha", arguments.lora_alpha != default.lora_alpha),
        ("--lora_dropout", arguments.lora_dropout != default.lora_dropout),
        ("--target_modules", arguments.target_modules != default.target_modules),
        ("--modules_to_save", arguments.modules_to_save != default.modules_to_save),
        ("--use_rslora", arguments.use_rslora),
    ];
    let reason = match (&arguments.peft_path, arguments.use_peft) {
        (_, false) => "there are no adapters with --use_peft false".to_owned(),
        (Some(dir), true) => format!("the settings are those of {}", dir.join("adapter_config.json").display()),
        (None, true) => return,
    };
    for (flag, _) in given.into_iter().filter(|(_, given)| *given) {
        eprintln!("{flag} has no effect here: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::plan;

    #[test]
    fn combinations_of_quantisation_are_medicalgpts_or_ours() {
        let found = |eight: bool, four: bool, qlora: bool, use_peft: bool, compat: Option<Compat>| {
            let change = |arguments: &mut TrainerArguments| {
                (arguments.load_in_8bit, arguments.load_in_4bit) = (eight, four);
                (arguments.qlora, arguments.use_peft) = (qlora, use_peft);
                arguments.data.compat = compat.into_iter().collect();
            };
            plan(change).map(|plan| plan.quantisation.map(Quantisation::name)).map_err(|error| error.to_string())
        };
        let (nf4, fp4, int8) = (Some("nf4, double".to_owned()), Some("fp4".to_owned()), Some("int8".to_owned()));
        let medicalgpt = Some(Compat::Medicalgpt);
        for compat in [None, medicalgpt] {
            assert_eq!(found(false, false, false, true, compat), Ok(None));
            assert_eq!(found(true, false, false, true, compat), Ok(int8.clone()));
            assert_eq!(found(true, false, true, true, compat), Ok(int8.clone()));
            assert_eq!(found(false, true, true, true, compat), Ok(nf4.clone()));
            let error = found(true, true, false, true, compat).unwrap_err();
            assert!(error.contains("--load_in_8bit") && error.contains("--load_in_4bit"), "{error}");
            for (eight, four, flag) in [(true, false, "--load_in_8bit"), (false, true, "--load_in_4bit")] {
                let error = found(eight, four, true, false, compat).unwrap_err();
                assert!(error.contains("--use_peft") && error.contains(flag), "{error}");
            }
        }
        assert_eq!(found(false, true, false, true, None), Ok(nf4.clone()));
        assert_eq!(found(false, true, false, true, medicalgpt), Ok(fp4));
        assert_eq!(found(false, false, true, true, None), Ok(nf4));
        assert_eq!(found(false, false, true, true, medicalgpt), Ok(None));
        assert!(found(false, false, true, false, None).unwrap_err().contains("--qlora"));
        let error = plan(|arguments| arguments.int8_threshold = Some(-1.0)).unwrap_err().to_string();
        assert!(error.contains("--int8_threshold"), "{error}");
    }
}
