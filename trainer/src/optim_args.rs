//! `--optim_args`: settings of the optimizer that have no flag of their own, read as transformers reads them.

use tokenmill_shared::{Error, Result};

use crate::ops::sgd::Momentum;
use crate::optimizer::Rule;

const FLAG: &str = "--optim_args";

/// What `momentum=0.9,nesterov=true` asks of `rule`. Only SGD has such settings; of what has no effect, `say` is told.
///
/// # Errors
/// A setting that is no `name=value`, that SGD does not have, or that torch refuses.
pub fn parse(text: Option<&str>, rule: Rule, mut say: impl FnMut(&str)) -> Result<Momentum> {
    let mut momentum = Momentum::default();
    let text = text.unwrap_or_default().replace(' ', "");
    if matches!(text.as_str(), "" | "None" | "none") {
        return Ok(momentum);
    }
    for setting in text.split(',') {
        let Some((name, value)) = setting.split_once('=').filter(|(_, value)| !value.contains('=')) else {
            return Err(Error::config(FLAG, format!("has {setting:?}; give name=value, with commas between")));
        };
        if rule != Rule::Sgd {
            let reason = "has no effect here: as in transformers, only --optim sgd has such settings";
            say(&format!("{FLAG} {setting} {reason}"));
            continue;
        }
        let number = || {
            let number = value.parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| Error::config(FLAG, format!("has {setting:?}, which is no number")))
        };
        match name {
            "momentum" => momentum.momentum = number()?,
            "dampening" => momentum.dampening = number()?,
            "nesterov" => momentum.nesterov = ["true", "1", "yes"].contains(&value.to_lowercase().as_str()),
            "weight_decay" => {
                let reason = "has no effect here: as in transformers, a parameter has that of --weight_decay, or none";
                say(&format!("{FLAG} {setting} {reason}"));
            }
            _ => {
                let reason = format!("has {name:?}, and sgd has momentum, dampening and nesterov");
                return Err(Error::config(FLAG, reason));
            }
        }
    }
    if momentum.momentum < 0.0 {
        return Err(Error::config(FLAG, format!("has a momentum of {}, which is below 0", momentum.momentum)));
    }
    if momentum.nesterov && (momentum.momentum == 0.0 || momentum.dampening != 0.0) {
        return Err(Error::config(FLAG, "has nesterov, which needs a momentum and no dampening"));
    }
    Ok(momentum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_transformers_reads_them() {
        let mut said = Vec::new();
        let mut sgd = |text: &str| parse(Some(text), Rule::Sgd, |line| said.push(line.to_owned())).unwrap();
        let (momentum, dampening, nesterov) = (0.9, 0.1, true);
        assert_eq!(sgd("momentum=0.9, dampening = 1e-1"), Momentum { momentum, dampening, nesterov: false });
        assert_eq!(sgd("nesterov=YES,momentum=.9"), Momentum { momentum, dampening: 0.0, nesterov });
        assert_eq!(sgd("momentum=0.5,momentum=0.9,nesterov=on").momentum, 0.9);
        assert_eq!(sgd("weight_decay=3"), Momentum::default());
        assert!(said.len() == 1 && said[0].contains("--weight_decay"), "{said:?}");
        let say = |line: &str| assert!(line.contains("only --optim sgd"), "{line}");
        assert_eq!(parse(Some("betas=3"), Rule::AdamwTorch, say).unwrap(), Momentum::default());
        assert_eq!(parse(None, Rule::Sgd, say).unwrap(), Momentum::default());
        for (text, part) in [
            ("momentum", "name=value"),
            ("momentum=0.9,", "name=value"),
            ("a=b=c", "name=value"),
            ("momentum=much", "no number"),
            ("momentum=-1", "below 0"),
            ("momentun=0.9", "momentum, dampening and nesterov"),
            ("nesterov=true", "needs a momentum"),
            ("nesterov=1,momentum=0.9,dampening=0.1", "no dampening"),
        ] {
            let error = parse(Some(text), Rule::Sgd, say).unwrap_err().to_string();
            assert!(error.contains(FLAG) && error.contains(part), "{error}");
        }
    }
}
