//! The curve as a picture.

use std::fmt::Write;

use serde_json::Value;

/// The logged losses as an SVG: training as a line, evaluations as dots on a second one.
pub fn loss_chart(log_history: &[Value]) -> Option<String> {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 320.0;
    const MARGIN: f64 = 48.0;
    let points = |key: &str| -> Vec<(f64, f64)> {
        log_history.iter().filter_map(|entry| Some((entry["step"].as_f64()?, entry[key].as_f64()?))).collect()
    };
    let (train, eval) = (points("loss"), points("eval_loss"));
    let all = || train.iter().chain(&eval);
    if train.len() < 2 {
        return None;
    }
    let last = all().map(|point| point.0).fold(1.0, f64::max);
    let low = all().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    let span = (high - low).max(1e-9);
    let x = |step: f64| MARGIN + step / last * (WIDTH - 1.5 * MARGIN);
    let y = |loss: f64| HEIGHT - MARGIN - (loss - low) / span * (HEIGHT - 1.5 * MARGIN);
    let line = |points: &[(f64, f64)]| {
        points.iter().map(|(step, loss)| format!("{:.1},{:.1}", x(*step), y(*loss))).collect::<Vec<_>>().join(" ")
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for fraction in [0.0, 0.5, 1.0] {
        let loss = low + fraction * span;
        let _ = writeln!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{0}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>",
            WIDTH - MARGIN / 2.0,
            y(loss)
        );
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.3}</text>",
            MARGIN - 6.0,
            y(loss) + 4.0
        );
        let step = (fraction * last).round();
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - MARGIN + 18.0
        );
    }
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"1.5\"/>", line(&train));
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#d62728\" stroke-width=\"1.5\"/>", line(&eval));
    for (step, loss) in &eval {
        let _ = writeln!(svg, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"#d62728\"/>", x(*step), y(*loss));
    }
    let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>", WIDTH / 2.0, HEIGHT - 10.0);
    let _ = writeln!(svg, "<text x=\"{0}\" y=\"20\" fill=\"#1f77b4\">training loss</text>", WIDTH - 220.0);
    if !eval.is_empty() {
        let _ = writeln!(svg, "<text x=\"{0}\" y=\"20\" fill=\"#d62728\">validation loss</text>", WIDTH - 120.0);
    }
    svg.push_str("</svg>\n");
    Some(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_chart_shows_every_logged_point() {
        let history =
            [json!({"step": 1, "loss": 3.0}), json!({"step": 2, "loss": 2.0}), json!({"step": 2, "eval_loss": 2.5})];
        let svg = loss_chart(&history).unwrap();
        assert!(svg.contains("circle") && svg.matches(',').count() >= 3);
        assert!(loss_chart(&history[..1]).is_none());
    }
}
