//! Thousands of added tokens load and run without a cliff, and give the ids they should.

use std::time::Instant;

use serde_json::{Value, json};
use tokenmill_tests::{Place, data, lines, run};

#[test]
fn twenty_thousand_added_tokens_are_found_in_text() {
    let place = Place::new();
    let path = data("tokenizers/bytes");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(path.join("tokenizer.json")).unwrap()).unwrap();
    let first = tokenizer["model"]["vocab"].as_object().unwrap().len();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for number in 0..20_000 {
        let content = format!("词{number}条");
        added.push(
            json!({"id": first + number, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": number % 2 == 0, "special": false}),
        );
    }
    place.write("tokenizer/tokenizer.json", tokenizer.to_string());
    place.write("tokenizer/tokenizer_config.json", std::fs::read(path.join("tokenizer_config.json")).unwrap());
    let words: Vec<String> = (0..200).map(|number| format!("词{}条 ", number * 97 % 20_000)).collect();
    place.write("text/a.txt", words.concat() + &lines(2_000, 1));
    let prepare = |tokenizer: &std::path::Path, output: &str| {
        let began = Instant::now();
        let json =
            run(&mut place.prepare(output, &["--tokenizer_name_or_path", tokenizer.to_str().unwrap()])).ok().json();
        (json, began.elapsed().as_secs_f64())
    };
    let (_, plain) = prepare(&path, "plain");
    let (json, extended) = prepare(&place.path("tokenizer"), "extended");
    assert_eq!(json["manifest"]["largest_token_id"], first + 19_999);
    let inspected = run(std::process::Command::new(&tokenmill_tests::binaries().preprocess)
        .arg("inspect")
        .arg(place.path("extended"))
        .args(["--row", "0", "--json", "true"]))
    .ok();
    let ids: Vec<u64> = inspected.json()["input_ids"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
    for (number, id) in ids.iter().step_by(2).enumerate() {
        assert_eq!(*id, (first + number * 97 % 20_000) as u64);
    }
    // Adding or searching them one by one would take minutes. Measured against the plain tokenizer, because other work
    // slows down both.
    println!("prepare took {plain:.2} s with the plain tokenizer, {extended:.2} s with 20,000 added tokens");
    assert!(extended < 5.0 + 10.0 * plain, "a cliff: {extended:.1} s, {plain:.1} s without added tokens");
}
