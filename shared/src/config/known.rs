//! Flags of existing scripts that stand for nothing here: each says what it does instead of being ignored.

use Takes::{Boolean, List, Value};
use Verdict::{NoEffect, Refused};

/// A sentence in English and in Chinese.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    /// English.
    pub en: &'static str,
    /// Chinese.
    pub zh: &'static str,
}

/// What may follow a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, or a truth value.
    Boolean,
    /// One word.
    Value,
    /// Any number of words.
    List,
}

/// What becomes of a run that gives the flag.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    /// It goes on, and the reason is said once.
    NoEffect(Text),
    /// It stops: going on would not be what was asked for.
    Refused(Text),
}

/// A flag that is known and stands for nothing here.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Without dashes, underscores between words.
    pub name: &'static str,
    /// What may follow it.
    pub takes: Takes,
    /// What becomes of the run.
    pub verdict: Verdict,
    /// Values that ask for nothing, in lower case: the flag then passes without a word.
    pub off: &'static [&'static str],
}

impl Known {
    /// The verdict on these values; `None` if they ask for nothing.
    pub fn verdict_on(&self, values: &[String]) -> Option<Verdict> {
        let nothing = |value: &String| self.off.contains(&value.trim().to_lowercase().as_str());
        (values.is_empty() || !values.iter().all(nothing)).then_some(self.verdict)
    }
}

/// The table, in the order of TrainingArguments.
pub const KNOWN: &[Known] = &[
    flag("device_map", Value, Refused(CPU)).off(&["", "none", "auto", "cpu"]),
    flag("trust_remote_code", Boolean, NoEffect(REMOTE_CODE)),
    flag("do_predict", Boolean, NoEffect(NO_TEST_SPLIT)),
    flag("prediction_loss_only", Boolean, NoEffect(RUNNING_SUMS)),
    flag("eval_accumulation_steps", Value, NoEffect(RUNNING_SUMS)),
    flag("batch_eval_metrics", Boolean, NoEffect(RUNNING_SUMS)),
    flag("include_inputs_for_metrics", Boolean, NoEffect(RUNNING_SUMS)),
    flag("include_for_metrics", List, NoEffect(RUNNING_SUMS)),
    flag("predict_with_generate", Boolean, NoEffect(SEQ2SEQ)),
    flag("sortish_sampler", Boolean, NoEffect(SEQ2SEQ)),
    flag("generation_max_length", Value, NoEffect(SEQ2SEQ)),
    flag("generation_num_beams", Value, NoEffect(SEQ2SEQ)),
    flag("generation_config", Value, NoEffect(SEQ2SEQ)),
    flag("log_level_replica", Value, NoEffect(ONE_PROCESS)).off(&["passive", "warning"]),
    flag("log_on_each_node", Boolean, NoEffect(ONE_PROCESS)).off(&["true"]),
    flag("save_on_each_node", Boolean, NoEffect(ONE_PROCESS)),
    flag("use_mps_device", Boolean, Refused(CPU)),
    flag("jit_mode_eval", Boolean, NoEffect(COMPILED)),
    flag("use_ipex", Boolean, NoEffect(COMPILED)),
    flag("torchdynamo", Value, NoEffect(COMPILED)),
    flag("torch_compile", Boolean, NoEffect(COMPILED)),
    flag("torch_compile_backend", Value, NoEffect(COMPILED)),
    flag("torch_compile_mode", Value, NoEffect(COMPILED)),
    flag("use_liger_kernel", Boolean, NoEffect(COMPILED)),
    flag("torch_empty_cache_steps", Value, NoEffect(COMPILED)),
    flag("fp16_opt_level", Value, NoEffect(ONE_PRECISION)).off(&["o1"]),
    flag("fp16_backend", Value, NoEffect(ONE_PRECISION)).off(&["auto"]),
    flag("half_precision_backend", Value, NoEffect(ONE_PRECISION)).off(&["auto"]),
    flag("tf32", Boolean, NoEffect(NO_TF32)),
    flag("local_rank", Value, Refused(PROCESSES)).off(&["-1", "0"]),
    flag("xpu_backend", Value, NoEffect(OTHER_HARDWARE)),
    flag("tpu_num_cores", Value, NoEffect(OTHER_HARDWARE)),
    flag("tpu_metrics_debug", Boolean, NoEffect(OTHER_HARDWARE)),
    flag("dataloader_num_workers", Value, NoEffect(READ_AHEAD)).off(&["0"]),
    flag("dataloader_pin_memory", Boolean, NoEffect(READ_AHEAD)).off(&["true"]),
    flag("dataloader_persistent_workers", Boolean, NoEffect(READ_AHEAD)),
    flag("dataloader_prefetch_factor", Value, NoEffect(READ_AHEAD)),
    flag("dataloader_in_order", Boolean, NoEffect(READ_AHEAD)).off(&["true"]),
    flag("past_index", Value, Refused(PAST)).off(&["-1"]),
    flag("remove_unused_columns", Boolean, NoEffect(ONLY_IDS)).off(&["true"]),
    flag("label_names", List, Refused(LABELS)).off(&["labels"]),
    flag("sharded_ddp", List, Refused(PROCESSES)),
    flag("fsdp", List, Refused(PROCESSES)),
    flag("fsdp_config", Value, Refused(PROCESSES)),
    flag("fsdp_min_num_params", Value, Refused(PROCESSES)).off(&["0"]),
    flag("fsdp_transformer_layer_cls_to_wrap", Value, Refused(PROCESSES)),
    flag("deepspeed", Value, Refused(PROCESSES)),
    flag("parallelism_config", Value, Refused(PROCESSES)),
    flag("accelerator_config", Value, NoEffect(ONE_PROCESS)),
    flag("ddp_backend", Value, NoEffect(ONE_PROCESS)),
    flag("ddp_find_unused_parameters", Boolean, NoEffect(ONE_PROCESS)),
    flag("ddp_bucket_cap_mb", Value, NoEffect(ONE_PROCESS)),
    flag("ddp_broadcast_buffers", Boolean, NoEffect(ONE_PROCESS)),
    flag("ddp_timeout", Value, NoEffect(NO_BARRIER)),
    flag("average_tokens_across_devices", Boolean, NoEffect(ONE_PROCESS)).off(&["true"]),
    flag("length_column_name", Value, NoEffect(EQUAL_LENGTHS)).off(&["length"]),
    flag("push_to_hub", Boolean, Refused(HUB)),
    flag("hub_model_id", Value, NoEffect(WITHOUT_HUB)),
    flag("hub_strategy", Value, NoEffect(WITHOUT_HUB)),
    flag("hub_private_repo", Boolean, NoEffect(WITHOUT_HUB)),
    flag("hub_always_push", Boolean, NoEffect(WITHOUT_HUB)),
    flag("hub_revision", Value, NoEffect(WITHOUT_HUB)),
    flag("full_determinism", Boolean, NoEffect(DETERMINISTIC)),
    flag("ray_scope", Value, NoEffect(NO_RAY)).off(&["last"]),
    flag("gradient_checkpointing_kwargs", Value, NoEffect(ONE_RECOMPUTE)),
    flag("eval_use_gather_object", Boolean, NoEffect(ONE_PROCESS)),
    flag("split_batches", Boolean, NoEffect(ONE_PROCESS)),
    flag("optim_target_modules", List, Refused(LOW_RANK)),
    flag("save_safetensors", Boolean, Refused(SAFETENSORS)).off(&["true"]),
    flag("restore_callback_states_from_checkpoint", Boolean, NoEffect(CALLBACKS)),
    flag("include_tokens_per_second", Boolean, NoEffect(TOKENS_PER_SECOND)),
    flag("use_cache", Boolean, NoEffect(NO_CACHE)),
    flag("enable_jit_checkpoint", Boolean, NoEffect(SIGNALS)),
    flag("trackio_space_id", Value, Refused(LATER)).off(&["", "none", "trackio"]),
];

/// The entry of a flag.
pub fn known(name: &str) -> Option<&'static Known> {
    KNOWN.iter().find(|known| known.name == name)
}

const fn flag(name: &'static str, takes: Takes, verdict: Verdict) -> Known {
    let off: &[&str] = match takes {
        Boolean => &["false"],
        Value | List => &["", "none", "no", "off", "false"],
    };
    Known { name, takes, verdict, off }
}

impl Known {
    const fn off(self, off: &'static [&'static str]) -> Self {
        Self { off, ..self }
    }
}

const fn text(en: &'static str, zh: &'static str) -> Text {
    Text { en, zh }
}

const LATER: Text = text("not built yet; remove it to run without", "尚未实现；去掉它即可运行");
const LOW_RANK: Text = text(
    "not built yet: it is for GaLore and APOLLO, and the optimizers here train whole gradients; remove it",
    "尚未实现：它用于 GaLore 和 APOLLO，而这里的优化器使用完整的梯度；请去掉",
);
const CPU: Text =
    text("not built yet: training is on the CPU; give cpu or auto", "尚未实现：目前在 CPU 上训练；请用 cpu 或 auto");
const REMOTE_CODE: Text = text("no code of a checkpoint is ever run", "从不运行检查点里的代码");
const NO_TEST_SPLIT: Text = text("pretraining has no test split", "预训练没有测试集");
const RUNNING_SUMS: Text =
    text("loss and accuracy are running sums; predictions are never kept", "损失和准确率是累加的，从不保留预测");
const SEQ2SEQ: Text = text("is for sequence-to-sequence models", "只用于序列到序列模型");
const ONE_PROCESS: Text = text("is for several processes; this is one", "用于多进程；这里只有一个进程");
const COMPILED: Text =
    text("kernels are compiled ahead and fused; nothing is left to switch on", "算子已预先编译并融合，无需再开启");
const ONE_PRECISION: Text = text("there is one implementation of each precision", "每种精度只有一种实现");
const NO_TF32: Text = text("a CPU has no tf32; float32 is exact here", "CPU 没有 tf32；这里是完整的 float32");
const PROCESSES: Text = text("not built yet: one process trains; remove it", "尚未实现：目前只用一个进程训练；请去掉");
const OTHER_HARDWARE: Text = text("is for hardware there is no backend for", "用于没有后端支持的硬件");
const READ_AHEAD: Text =
    text("one thread reads blocks ahead, in order; they need no more work", "由一个线程按顺序预读数据块，无需更多处理");
const PAST: Text =
    text("not built yet: no family here has such memory; remove it", "尚未实现：这里没有带此类记忆的模型；请去掉");
const ONLY_IDS: Text = text("blocks hold ids only", "数据块只有 token id");
const LABELS: Text =
    text("not built yet: labels are the ids themselves; remove it", "尚未实现：标签就是 id 本身；请去掉");
const NO_BARRIER: Text =
    text("nothing waits for another process: data is read by position", "没有进程间等待：数据按位置读取");
const EQUAL_LENGTHS: Text = text(
    "documents are packed into blocks of one length; there is nothing to group",
    "文档已打包成等长的数据块，无需按长度分组",
);
const HUB: Text = text(
    "not built yet: upload --output_dir with `hf upload`; remove it",
    "尚未实现：请用 `hf upload` 上传 --output_dir；请去掉",
);
const WITHOUT_HUB: Text = text("is for uploads to a hub, of which there are none", "只用于上传到 hub；这里没有上传");
const DETERMINISTIC: Text =
    text("every run is deterministic, whatever the threads", "无论多少线程，每次运行本来就是确定的");
const NO_RAY: Text = text("there is no hyper-parameter search here", "这里没有超参数搜索");
const ONE_RECOMPUTE: Text =
    text("there is one way of recomputing, with the same bits", "重算只有一种方式，结果逐位相同");
const SAFETENSORS: Text =
    text("not built yet: weights are saved as safetensors only; remove it", "尚未实现：权重只存为 safetensors；请去掉");
const CALLBACKS: Text = text("there are no callbacks with a state", "没有带状态的回调");
const TOKENS_PER_SECOND: Text = text("tokens per second are always reported", "总会报告每秒 token 数");
const NO_CACHE: Text = text("training keeps no key-value cache", "训练时不保留键值缓存");
const SIGNALS: Text = text("SIGTERM always saves a checkpoint", "收到 SIGTERM 时总会保存检查点");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_ask_for_nothing_pass() {
        let verdict = |name: &str, value: &str| known(name).unwrap().verdict_on(&[value.to_owned()]);
        assert!(verdict("push_to_hub", "false").is_none() && verdict("device_map", "Auto").is_none());
        assert!(matches!(verdict("push_to_hub", "true"), Some(Refused(_))));
        assert!(matches!(verdict("ddp_timeout", "30000"), Some(NoEffect(_))));
        assert!(verdict("fsdp", "").is_none() && verdict("deepspeed", "None").is_none());
        assert!(matches!(verdict("save_safetensors", "false"), Some(Refused(_))));
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        let mut names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KNOWN.len());
        for known in KNOWN {
            if let Refused(reason) = known.verdict {
                assert!(reason.en.contains("not built yet") && reason.zh.contains("尚未实现"), "{}", known.name);
            }
        }
    }
}
