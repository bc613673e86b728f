"""LoRA instruction tuning of a BLOOM model: one stage, from data to adapter.

    python finetune_bloom.py --base_model models/bloom-7b1 --data_path data/belle/belle.json \\
        --output_dir output/run-6-bloom-7b1-1

    python finetune_bloom.py --base_model models/bloom-7b1 --data_path data/firefly/firefly-train-0.json \\
        --output_dir output/rerun-6-bloom-7b1-2 --resume_from_checkpoint output/run-6-bloom-7b1-1

The second continues the first one's adapter. A run that was interrupted goes on with the same command.
The steps are finetune.py's; LoRA sits on the one layer that makes BLOOM's queries, keys and values together.
"""

from utils import checks, cli


def train(
    # the model and the data
    base_model: str = "",  # the frozen model: a folder, or a Hub name
    data_path: str = "",
    data_mix: tuple[str, ...] = (),
    output_dir: str = "./lora-bloom",  # a folder of this run's own
    # the training
    batch_size: int = 128,  # rows a step
    micro_batch_size: int = 4,  # rows on the device at once; divides batch_size
    num_epochs: int = 3,  # times that every row is learned from
    learning_rate: float = 3e-4,  # its peak, behind the warm-up; it falls to 0
    cutoff_len: int = 256,  # tokens of a row, prompt and answer; longer rows are truncated
    val_set_size: int = 2000,  # rows held out for the validation loss; take less of a small set (500, 200)
    neftune_noise_alpha: float = 0.0,  # of the noise on embeddings in training (5, say)
    # the adapter
    lora_r: int = 8,  # the rank
    lora_alpha: int = 16,  # B·A counts alpha / r times
    lora_dropout: float = 0.05,  # on what goes into A, in training only
    lora_target_modules: tuple[str, ...] = ("query_key_value",),  # linear layers, by name
    use_rslora: bool = False,  # B·A counts alpha / sqrt(r) times
    # what is learned from
    train_on_inputs: bool = True,  # True: the loss counts prompts too; False: answers only
    last_turn_only: bool = False,
    add_eos_token: bool = False,
    group_by_length: bool = False,  # rows of like length share a step
    # loggers
    wandb_project: str = "",  # log there too (pip install wandb)
    wandb_run_name: str = "",  # the run's name there
    wandb_watch: str = "",  # false, gradients, parameters or all
    wandb_log_model: str = "",  # false, true, end or checkpoint
    tensorboard: bool = False,  # log for it too (pip install tensorboard)
    # where it starts, and what of the earlier stages it keeps
    resume_from_checkpoint: str = "",
    force_base: bool = False,  # accept an adapter that was trained on another base
    replay: float = 0.0,
    max_forget: float = float("inf"),
    prompt_template_name: str = "alpaca",  # one of templates/
    load_8bit: bool = True,  # the frozen base in 8 bits
    load_4bit: bool = False,  # in 4 bits (with load_8bit False)
    dtype: str = "auto",  # of a base that is not quantised: auto (its own), float32, bfloat16 or float16
    fast: bool = True,
    seed: int = 42,  # of the order, the split, the dropout, the new adapter
    overwrite: bool = False,  # what lies in output_dir is moved aside first
    dry_run: bool = False,
) -> None:
    """Train one LoRA stage and leave the best adapter, run.json, metrics.jsonl and loss.png in output_dir.

    data_path: .json, .jsonl or a Hub name, or several (a.json,b.json); rows of instruction, input, output, history.
    data_mix: their shares in the training (0.7,0.3); no row is used twice, so some of a file may stay unused.
    last_turn_only: of a row with history only the last answer is learned, not every one.
    resume_from_checkpoint: the adapter folder of the stage before; nothing ever trains from scratch instead.
    lora_r, lora_alpha, lora_target_modules, use_rslora and the template are inherited; force_base accepts another base.
    replay: share of rows of the earlier stages to mix in (0.05: one for twenty of this stage's own).
    max_forget: the stage fails when the validation loss of an earlier one rises by more (nats per answer token).
    fast: fused LoRA products, the loss in parts of the 250,880 logits; False is the plain path, which it must equal.
    dry_run: show what the model would see, the steps and the memory needed, without loading weights, and stop.
    add_eos_token: accepted for Alpaca-LoRA's sake; an answer always ends with EOS unless it is truncated.
    """
    flags = dict(locals())

    # --- Arguments: everything that can be known before anything heavy is imported ---
    checks.training(flags, cli.given_flags())

    from utils import adapters, checkpoint, dataset, forgetting, hub, memory, models, plots, record, runtime, training
    from utils.prompter import Prompter

    # --- What this run is made of: base, parent and what is inherited from it, data; and whether they fit ---
    base_folder = hub.local_folder(base_model, "base_model")
    base = record.describe_base(base_model, base_folder)
    parent = adapters.describe_parent(resume_from_checkpoint, output_dir)
    flags = adapters.inherit(flags, cli.given_flags(), parent)
    lora = {name: flags[name] for name in models.LORA_FLAGS}
    empty = models.add_lora(models.empty_base(base_folder), **lora)
    adapters.check_parent(parent, base, empty, force_base)
    prompter = Prompter(flags["prompt_template_name"])
    rows, origins = dataset.load_rows(data_path, data_mix, seed)
    checks.rows_and_validation(len(rows), val_set_size)
    earlier = forgetting.earlier_stages(parent, flags)

    # --- Where it starts: anew, at the last checkpoint, or it is done already ---
    run = record.describe("finetune", flags, base, parent, origins, prompter)
    needed = checkpoint.needed_bytes(adapters.bytes_of(empty))
    device = runtime.join()
    runtime.of_first(record.refuse_unlike, runtime.gathered(run))
    start = runtime.of_first(checkpoint.starting_point, output_dir, run, overwrite, needed, dry_run)
    if start.complete:
        runtime.of_first(lambda: forgetting.refuse(record.read(output_dir)["held_out"], max_forget))
        print(f"{output_dir} is already complete")
        return

    # --- Rows into tokens ---
    tokenizer = models.load_tokenizer(base_folder)
    train_rows, val_rows = dataset.split(rows, val_set_size, seed)
    train_rows, replayed = forgetting.replayed(train_rows, earlier, replay, seed)
    learned = {"train_on_inputs": train_on_inputs, "last_turn_only": last_turn_only}
    train_set, counts = dataset.encode(train_rows, tokenizer, prompter, cutoff_len, **learned)
    val_set, val_counts = dataset.encode(val_rows, tokenizer, prompter, cutoff_len, **learned)
    steps = training.plan(len(train_set), batch_size, num_epochs)
    if dry_run:
        from utils import preview

        runtime.of_first(preview.show_data, flags, rows, origins, train_set, counts, tokenizer)
        runtime.of_first(preview.show_run, flags, train_set, steps, empty, device)
        return
    print(f"training rows {counts}\nvalidation rows {val_counts}\n{steps}")

    # --- Base model and adapter ---
    of = {"training": counts, "validation": val_counts, "replayed": replayed}
    runtime.of_first(record.begin, output_dir, run, of)
    runtime.seed_everything(seed)
    recompute = runtime.of_first(memory.must_recompute, empty, train_set, flags, device)
    model = models.load_base(base_folder, load_8bit, load_4bit, dtype, device)
    model = models.add_lora(models.prepare_for_training(model, recompute=recompute), **lora, is_fast=fast)
    adapters.load_parent(parent, model)

    # --- Train, save the best adapter, write down what was learned and what was forgotten ---
    trainer = training.build(model, train_set, val_set, steps, flags, tokenizer.pad_token_id, device)
    outcome = training.run(trainer, start.checkpoint)
    runtime.of_first(record.refuse_changed_data, run)
    outcome["files"] = runtime.of_first(adapters.save_adapter, model, output_dir)
    outcome["held_out"] = forgetting.measure(earlier, trainer.mean_loss, tokenizer)
    runtime.of_first(plots.loss, {output_dir: trainer.metrics.path}, f"{output_dir}/loss.png")
    runtime.of_first(forgetting.refuse, outcome["held_out"], max_forget)
    runtime.of_first(record.finish, output_dir, run, outcome)
    print(f"{output_dir} is complete: {training.summary(outcome['losses'])}")


if __name__ == "__main__":
    cli.run(train, several=True)
