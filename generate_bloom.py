"""Talk to a tuned BLOOM model: a page in the browser, or a file of prompts into test.json.

    python generate_bloom.py --base_model models/bloom-7b1 --lora_weights output/rerun-6-bloom-7b1-2

    python generate_bloom.py --base_model models/bloom-7b1 --lora_weights output/rerun-6-bloom-7b1-2 \\
        --is_ui False --test_input_path test_data/01qa.json

`--lora_weights ''` asks the base (or a merged model) alone; `--lora_weights A,B` puts two adapters on the page.
"""

from utils import checks, cli


def main(
    load_8bit: bool = False,  # the model in 8 bits
    base_model: str = "",  # a folder, or a Hub name
    lora_weights: str = "",  # an adapter's folder or Hub name; A,B puts several on the page; '' asks the base alone
    prompt_template: str = "",
    server_name: str = "127.0.0.1",  # the address the page is served on; another than this machine's needs auth
    share_gradio: bool = False,  # a public address through Gradio's tunnel; needs auth
    gpu_id: str = "",  # a GPU's number
    is_ui: bool = True,  # True: the page; False: a file of prompts
    test_input_path: str = "",  # the prompts: .json, .jsonl, or a folder of them
    # added to the original's
    num_beams: int = 1,  # above 1 searches (with temperature 0)
    temperature: float = 0.0,
    top_p: float = 0.75,  # draw among the likeliest tokens that make up this probability
    top_k: int = 40,  # draw among so many of the likeliest tokens
    max_new_tokens: int = 512,  # the longest answer
    seed: int = 42,  # the same prompt and seed, the same text
    stop: str = "",
    batch_tokens: int = 16384,
    output_path: str = "",  # another file than test.json in the adapter's folder
    overwrite: bool = False,  # answers of something else in the output file are moved away
    server_port: int = 0,  # 0: 7860 or the next free one
    auth: str = "",
    load_4bit: bool = False,  # the model in 4 bits
    dtype: str = "auto",  # of a model that is not quantised: auto (its own), float32, bfloat16 or float16
) -> None:
    """Answer with base_model and the adapter in lora_weights.

    is_ui True opens the page; False answers test_input_path (a list of strings or of {instruction, input?, history?,
    reference?}, JSON Lines of them, or a folder of such files) into output_path, by default test.json in the adapter's
    folder, or beside a checkpoint. The same command goes on where it was interrupted; overwrite moves other answers
    away.
    prompt_template: by default the one the adapter was trained with (its run.json).
    temperature: 0 is greedy; above, tokens are drawn with top_p, top_k and seed.
    stop: a text that ends an answer, or a JSON list of them. batch_tokens: tokens, prompts and answers, held at once.
    auth: USER:PASSWORD, or a file with a line of it for each user; asked for by every other address than this machine.
    """
    # --- What answers and what is asked: everything that can be known before the model loads ---
    flags = dict(locals())
    checks.answering(flags)

    from utils import rows, tuned, values

    asked = [] if is_ui else rows.read_prompts(test_input_path)
    base = tuned.read_base(base_model)
    choices = tuned.read_tuned(lora_weights, prompt_template, base)

    from utils import adapters, answers, batch, chat, generation, models, runtime

    device = runtime.join(gpu_id)
    target = None if is_ui else runtime.of_first(answers.begin, flags, base, choices[0], asked)
    if target and target.is_complete:
        target.close()
        return
    tokenizer = models.load_tokenizer(base["path"])
    empty = adapters.apply_adapters(models.empty_base(base["path"]), tuned.folders(choices))
    context = generation.context_of(empty.config)
    if target:
        prompts = batch.encode_all(tokenizer, choices[0].prompter, asked, context, test_input_path)

    # --- Model ---
    model = models.load_base(base["path"], load_8bit, load_4bit, dtype, device)
    model = adapters.apply_adapters(model, tuned.folders(choices))
    stops = values.stop_texts(stop)
    sampling = generation.Sampling(num_beams, temperature, top_p, top_k, max_new_tokens, seed, stops)
    assistants = generation.assistants(model, tokenizer, choices, sampling)

    # --- Answers: into a file, or to a reader ---
    if target:
        batch.answer_all(target, prompts, assistants[choices[0].name], batch_tokens)
        target.close()
        return
    from utils import gate, web

    talk = chat.Chat(assistants, {one.name: one.about for one in choices})
    page = web.build(talk, "DreamerGPT 梦想家", chat.examples(), chat.training_rows)
    users, in_front = values.users(auth), gate.in_front(server_name, share_gradio)
    web.serve(page, server_name, server_port, share_gradio, users, in_front)


if __name__ == "__main__":
    cli.run(main, several=True)
