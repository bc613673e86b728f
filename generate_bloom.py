"""Talk to a tuned BLOOM model: a page in the browser, or a file of prompts into test.json.

    python generate_bloom.py --base_model models/bloom-7b1 --lora_weights output/rerun-6-bloom-7b1-2

    python generate_bloom.py --base_model models/bloom-7b1 --lora_weights output/rerun-6-bloom-7b1-2 \\
        --is_ui False --test_input_path test_data/01qa.json

`--lora_weights ''` asks the base (or a merged model) alone.
"""

from utils import checks, cli


def main(
    load_8bit: bool = False,
    base_model: str = "",
    lora_weights: str = "",
    prompt_template: str = "",
    server_name: str = "127.0.0.1",
    share_gradio: bool = False,
    gpu_id: str = "",
    is_ui: bool = True,
    test_input_path: str = "",
    # added to the original's
    num_beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 0.75,
    top_k: int = 40,
    max_new_tokens: int = 512,
    seed: int = 42,
    batch_size: int = 16,
    server_port: int = 0,
    output_path: str = "",
    load_4bit: bool = False,
    dtype: str = "auto",
) -> None:
    """Answer with base_model and the adapter in lora_weights.

    is_ui True opens the page; False answers test_input_path (a list of strings or of {instruction, input?, history?,
    reference?}) into output_path, by default test.json in the adapter's folder.
    prompt_template: by default the one the adapter was trained with (its run.json).
    temperature: 0 is greedy; above, tokens are sampled with top_p, top_k and seed.
    """
    # --- Arguments and prompts: everything that can be known before the model loads ---
    checks.answering(dict(locals()))

    from utils import adapters, batch, generation, hub, models, record, rows, runtime, web
    from utils.prompter import Prompter

    prompts = [] if is_ui else rows.read_prompts(test_input_path)
    base_folder = hub.local_folder(base_model, "base_model")
    adapter = hub.local_folder(lora_weights, "lora_weights") if lora_weights else None
    prompter = Prompter(record.template_of(adapter or base_folder, prompt_template))
    record.check_base(adapter, record.describe_base(base_model, base_folder))
    adapters.apply_adapter(models.empty_base(base_folder), adapter)

    # --- Model ---
    tokenizer = models.load_tokenizer(base_folder)
    model = models.load_base(base_folder, load_8bit, load_4bit, dtype, runtime.device(gpu_id))
    model = adapters.apply_adapter(model, adapter)
    sampling = generation.Sampling(num_beams, temperature, top_p, top_k, max_new_tokens, seed)
    assistant = generation.Assistant(model, tokenizer, prompter, sampling)

    # --- Answers: to a reader, or into a file ---
    if is_ui:
        page = web.build(assistant.respond, "DreamerGPT 梦想家", vars(sampling))
        web.serve(page, server_name, server_port, share_gradio)
    else:
        target = batch.output_file(output_path, lora_weights, base_model)
        batch.write(target, batch.answer_all(prompts, assistant, batch_size, test_input_path))


if __name__ == "__main__":
    cli.run(main)
