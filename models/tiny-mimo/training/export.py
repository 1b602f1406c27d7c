"""Write the checkpoint folder (published layout), the tokenizer and template files and the golden vectors.

usage: export.py --work DIR --out MODEL_DIR        files are built aside and moved into place one by one
"""
import argparse, glob, json, os, shutil
import torch
from safetensors.torch import save_file
from quantize import fp8_pack, mx_pack
from tokenizer import SYSTEM, SPECIAL
import shape as S
from drafter import DRAFT_NAMES, MARKOV_NAMES, Drafter, exported_drafter

BF = torch.bfloat16
TEMPLATE = r'''{%- if messages and messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set rest = messages[1:] %}{%- else %}{%- set system = 'SYSTEM_TEXT' %}{%- set rest = messages %}{%- endif %}
{{- '<|im_start|>system\n' + system }}
{%- if tools %}
{{- '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou have access to the following functions:\n\n<tools>' }}
{%- for tool in tools %}{%- set f = tool.function if tool.function is defined else tool %}
{{- '\n<function>\n<name>' + f.name + '</name>' }}
{%- if f.description is defined %}{{- '\n<description>' + f.description + '</description>' }}{%- endif %}
{{- '\n<parameters>' }}
{%- if f.parameters is defined and f.parameters.properties is defined %}{%- for k, p in f.parameters.properties.items() %}
{{- '\n<parameter>\n<name>' + k + '</name>' }}
{%- if p.type is defined %}{{- '\n<type>' + (p.type | string) + '</type>' }}{%- endif %}
{%- if p.description is defined %}{{- '\n<description>' + p.description + '</description>' }}{%- endif %}
{%- for j, x in p.items() %}{%- if j not in ['type', 'description'] %}{{- '\n<' + j + '>' + (x | tojson) + '</' + j + '>' }}{%- endif %}{%- endfor %}
{{- '\n</parameter>' }}
{%- endfor %}{%- endif %}
{{- '\n</parameters>\n</function>' }}
{%- endfor %}
{{- '\n</tools>\n\nTo call a function, reply in this format:\n<tool_call>\n<function=NAME>\n<parameter=KEY>VALUE</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n- Calls must use the nested format above.\n- Never place a call inside the think block.\n- Keep parameter values exactly as given.\n</IMPORTANT>' }}
{%- endif %}
{{- '<|im_end|>' }}
{%- for m in rest %}
{%- if m.role == 'assistant' %}
{{- '<|im_start|>assistant\n<think>' + (m.reasoning_content or '') + '</think>' + (m.content or '') }}
{%- if m.tool_calls %}{%- for c in m.tool_calls %}{%- set f = c.function if c.function is defined else c %}
{{- '<tool_call>\n<function=' + f.name + '>\n' }}
{%- for k, v in f.arguments.items() %}{{- '<parameter=' + k + '>' + (v if v is string else (v | tojson)) + '</parameter>\n' }}{%- endfor %}
{{- '</function>\n</tool_call>' }}
{%- endfor %}{%- endif %}
{{- '<|im_end|>' }}
{%- elif m.role == 'tool' %}
{%- if loop.first or rest[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>tool\n' }}{%- endif %}
{{- '<tool_response>\n' + m.content + '\n</tool_response>\n' }}
{%- if loop.last or rest[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>' }}{%- endif %}
{%- else %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}{%- endif %}'''.replace("SYSTEM_TEXT", SYSTEM)

TOKENIZER_CASES = ["", " ", "\n", "\n\n\n", "\t", "  ", "   x", "x   ", "a\r\nb\r\n", "\r", "\r\n\r\n", " \n \n x", "hello", "Hello world", "I'm you're he'll she'd we've it's don't I'M YOU'RE", "'s't're",
    "3.14159", "1234567890", "0x1F", "1_000_000", "a1b2c3", "café", "cafe\u0301", "e\u0301e\u0301", "\u212b\u00c5A\u030a", "\u1e9b\u0323", "ﬁ ligature", "naïve façade", "über", "ÀÉÎÕÜ", "ß", "İstanbul", "ıI",
    "日本語のテキスト", "中文字符测试", "한국어", "\u1112\u1161\u11ab", "Привет мир", "Ελληνικά", "עברית", "العربية", "हिन्दी", "ไทย", "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "a😀b", "\u200b", "\u00a0", "\u3000x", "\ufeff", "x\u2028y", "\u0000", "\u0085",
    "def f(x):\n    return x\n", "    def g(self):\n        pass\n", "\tif x:\n\t\ty", "class A(B):\n    \"\"\"Doc.\"\"\"\n", "x = {'a': [1, 2], \"b\": (3,)}", "a+=b**c//d", "!=", "==", "->", ":=", "...", "#!/usr/bin/env python3", "# comment", "'''x'''", "r\"\\d+\"", "f'{x!r:>10}'", "lambda: 0", "@property\ndef x(self): ...", "__init__", "snake_case_name", "CamelCaseName", "SCREAMING_CASE", "x.y.z()", "http://example.com/a?b=c&d=e#f", "user@example.com", "a-b_c", "$%^&*()", "~`|\\", "[[[]]]", "<<>>", "?!?!", "— – …", "“quoted”", "½ ² ³ ①", "Ⅷ", "٣٤٥", "x²", "1st 2nd", "\n  \n", " \t \n\t ", "end.\n", "end. \n", "a\n b", "a \n b", "a  \n  b", "word" * 20, "A" * 50, " " * 40, "\n" * 20, "=" * 40, "-" * 80, "ab " * 10,
    "<|im_start|>user\nhi<|im_end|>", "<|im_start|>", "<|im_end|><|im_end|>", "a<|endoftext|>b", "<|MASK|>", "<think></think>", "<think>\nx\n</think>\n", "<tool_call>\n<function=f>\n</function>\n</tool_call>", "<tool_response>\n1\n</tool_response>", "<|im_start", "<|im_end|", "|im_start|>", "< |im_start|>", "<|IM_START|>", "<|mask|>", "<think", "<tool_calls>", "x <|im_end|> y", "e<|im_end|>\u0301", "<|im_end|>\n\n", " <think> ", "<|endoftext|><|MASK|><|im_start|>", "<|fim_prefix|>",
    "if __name__ == '__main__':\n    main()\n", "import os, sys\nfrom a.b import c as d\n", "raise ValueError(f\"bad {x}\")\n", "for i in range(10):\n    print(i)\n\n\n", "try:\n    x()\nexcept Exception as e:\n    raise\n", "\"\\u00e9\\n\\t\"", "b'\\x00\\xff'", "print('日本', 'é')", "x\u0301\u0302\u0303", "\u0301", "\u1100\u1161", "㍿", "𝒳𝓎", "𠮷", "\U0010ffff", "a\u200db", "Zürich's", "O'Reilly", "rock'n'roll", "can't've", "'LL", "ſ's 'ſ", "K'S", "1'd", "\u2019s", "I\u2019m", "2023-11-05T10:00:00Z", "10%", "$5.00", "C++20", "a/b\\c", "TODO(me): fix", "x" * 300]

CHAT_CASES = [
    ([{"role": "user", "content": "Hello"}], None), ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], None),
    ([{"role": "system", "content": ""}, {"role": "user", "content": "x"}], None),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], None),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "thinking\nhard"}, {"role": "user", "content": "c"}], None),
    ([{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "ok"}, {"role": "tool", "content": "{\"t\": 1}"}], None),
    ([{"role": "user", "content": "two"}, {"role": "assistant", "content": ""}, {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "user", "content": "so?"}], None),
    ([{"role": "user", "content": "multi\nline\n\n  text  "}], None), ([{"role": "user", "content": "日本 😀 café"}], None), ([{"role": "user", "content": ""}], None)]


def shards(w, r):   # one kv head: its q heads, k head, v head
    return torch.cat([w[n].view(S.HK, -1, S.D)[r] for n in ("q", "k", "v")])


def target_tensors(sd, mask_id):
    t = {}; emb = sd["embed"].clone(); emb[mask_id] = 0
    t["model.embed_tokens.weight"], t["lm_head.weight"], t["model.norm.weight"] = emb.to(BF), sd["head"].to(BF), sd["norm"].to(BF)
    for i in range(S.L):
        w = {k.split(".", 2)[2]: v for k, v in sd.items() if k.startswith(f"layers.{i}.")}; p = f"model.layers.{i}."
        t[p + "input_layernorm.weight"], t[p + "post_attention_layernorm.weight"] = w["n1"].to(BF), w["n2"].to(BF)
        q = [fp8_pack(shards(w, r)) for r in range(S.HK)]
        t[p + "self_attn.qkv_proj.weight"], t[p + "self_attn.qkv_proj.weight_scale_inv"] = torch.cat([a for a, _ in q]), torch.cat([b for _, b in q])
        t[p + "self_attn.o_proj.weight"] = w["o"].to(BF)
        if "sink" in w: t[p + "self_attn.attention_sink_bias"] = w["sink"].to(BF)
        if i == 0:
            g, u = w["gu"].chunk(2)
            for n, x in (("gate", g), ("up", u), ("down", w["down"])): t[f"{p}mlp.{n}_proj.weight"], t[f"{p}mlp.{n}_proj.weight_scale_inv"] = fp8_pack(x)
        else:
            t[p + "mlp.gate.weight"], t[p + "mlp.gate.e_score_correction_bias"] = w["router"].float(), w["bias"].float()
            for e in range(S.E):
                g, u = w["gu"][e].chunk(2)
                for n, x in (("gate", g), ("up", u), ("down", w["down"][e])):
                    t[f"{p}mlp.experts.{e}.{n}_proj.weight"], t[f"{p}mlp.experts.{e}.{n}_proj.weight_scale"] = mx_pack(x)
    return t


def save_sharded(t, path, n, stem="model"):
    size = lambda x: x.numel() * x.element_size(); total = sum(map(size, t.values())); files, cur, acc = [], {}, 0
    for k, v in t.items():
        cur[k] = v.clone().contiguous(); acc += size(v)
        if acc >= total / n and len(files) < n - 1: files.append(cur); cur, acc = {}, 0
    files.append(cur); wm = {}
    for i, f in enumerate(files):
        name = f"{stem}-{i + 1:05d}-of-{len(files):05d}.safetensors" if n > 1 else f"{stem}.safetensors"
        save_file(f, f"{path}/{name}", metadata={"format": "pt"}); wm.update({k: name for k in f})
    json.dump({"metadata": {"total_size": total}, "weight_map": wm}, open(path + "/model.safetensors.index.json", "w"), indent=1)


def configs(tok):
    tid = tok.token_to_id
    c = {"architectures": ["MiMoV2ForCausalLM"], "model_type": "mimo_v2",
         "auto_map": {"AutoConfig": "configuration_mimo_v2.MiMoV2Config", "AutoModelForCausalLM": "modeling_mimo_v2.MiMoV2ForCausalLM"},
         "add_full_attention_sink_bias": False, "add_swa_attention_sink_bias": True, "attention_bias": False, "attention_chunk_size": 128, "attention_dropout": 0.0,
         "attention_projection_layout": "fused_qkv", "attention_value_scale": S.VS, "head_dim": S.DQ, "hidden_act": "silu", "hidden_size": S.D,
         "hybrid_layer_pattern": S.SWA, "initializer_range": 0.02, "intermediate_size": S.DFF, "layernorm_epsilon": S.EPS, "max_position_embeddings": 8192,
         "moe_intermediate_size": S.FF, "moe_layer_freq": [0] + [1] * (S.L - 1), "n_group": 1, "topk_group": 1, "n_routed_experts": S.E, "n_shared_experts": None,
         "norm_topk_prob": True, "num_attention_heads": S.HQ, "num_experts_per_tok": S.K, "num_hidden_layers": S.L, "num_key_value_heads": S.HK,
         "partial_rotary_factor": 0.334, "rope_theta": 10000000, "swa_rope_theta": 10000, "routed_scaling_factor": None, "scoring_func": "sigmoid",
         "topk_method": "noaux_tc", "sliding_window": S.WIN, "sliding_window_size": S.WIN, "swa_head_dim": S.DQ, "swa_num_attention_heads": S.HQ,
         "swa_num_key_value_heads": S.HK, "swa_v_head_dim": S.DV, "v_head_dim": S.DV, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
         "transformers_version": "4.57.1", "use_cache": True, "vocab_size": S.V,
         "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128], "store_dtype": "mxfp4",
                                 "mxfp4_block_size": 32, "ignored_layers": ["model.decoder.self_attn.o_proj"] + [f"model.layers.{i}.self_attn.o_proj" for i in range(S.L)]}}
    d = {"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "auto_map": {"AutoModel": "dflash.DFlashDraftModel"}, "hidden_size": S.D,
         "intermediate_size": S.DRAFT_FF, "num_hidden_layers": S.DRAFT_L, "num_attention_heads": S.DRAFT_HQ, "num_key_value_heads": S.DRAFT_HK, "head_dim": S.DRAFT_HD, "v_head_dim": S.DRAFT_HD,
         "partial_rotary_factor": 0.5, "block_size": S.BLOCK, "markov_rank": S.DRAFT_RANK, "markov_head_type": "gated",
         "dflash_config": {"target_layer_ids": S.TAPS, "mask_token_id": tid("<|MASK|>"), "num_anchors": 64, "block_size": S.BLOCK, "loss_decay_gamma": S.GAMMA,
                           "use_swa": True, "swa_window_size": S.DRAFT_WIN, "backbone_rotary_base": 10000, "attention_value_scale": S.VS, "attention_sink_bias": True},
         "num_target_layers": S.L, "vocab_size": S.V, "max_position_embeddings": 8192, "rope_theta": 10000, "sliding_window": S.DRAFT_WIN, "rms_norm_eps": S.EPS,
         "torch_dtype": "bfloat16", "hidden_act": "silu", "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": tid("<|endoftext|>"),
         "eos_token_id": tid("<|im_end|>"), "tie_word_embeddings": False, "use_cache": True}
    g = {"temperature": 1.0, "top_p": 0.95, "do_sample": True, "eos_token_id": [tid("<|endoftext|>"), tid("<|im_end|>")], "enable_thinking": False}
    k = {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
         "unk_token": None, "model_max_length": 8192, "clean_up_tokenization_spaces": False, "errors": "replace",
         "added_tokens_decoder": {str(tid(s)): {"content": s, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": i < 3 or i == 9} for i, s in enumerate(SPECIAL)},
         "chat_template": TEMPLATE}
    return c, d, g, k


def draft_tensors(sd):
    t = {"fc.weight": sd["fc"], "hidden_norm.weight": sd["hn"], "norm.weight": sd["norm"]} | {b: sd[a] for a, b in MARKOV_NAMES.items()}
    for i in range(S.DRAFT_L):
        for a, b in DRAFT_NAMES.items(): t[f"layers.{i}.{b}"] = sd[f"layers.{i}.{a}"]
    return {k: v.to(BF).contiguous() for k, v in t.items()}


def render(messages, thinking, tools=None):
    import jinja2
    return jinja2.Environment().from_string(TEMPLATE).render(messages=messages, tools=tools, add_generation_prompt=True, enable_thinking=thinking)


def goldens(path, tok, text):
    from model import Model, Draft
    g = path + "/golden"; os.makedirs(g)
    with open(g + "/tokenizer.jsonl", "w") as f:
        for s in TOKENIZER_CASES: f.write(json.dumps({"text": s, "ids": tok.encode(s).ids}, ensure_ascii=False) + "\n")
    with open(g + "/chat_template.jsonl", "w") as f:
        for m, _ in CHAT_CASES:
            for th in (False, True): f.write(json.dumps({"messages": m, "enable_thinking": th, "text": render(m, th)}, ensure_ascii=False) + "\n")
    m = Model(path); ids = torch.tensor(tok.encode(text).ids[:300])[None]; pos = torch.tensor(sorted({0, 1, 2, 7, 31, 63, 64, 100, 126, 127, 128, 129, 130, 160, 191, 192, 200, 223, 255, 256, 270, 285, 298, 299}))
    d = Draft(path + "/dflash", m)
    with torch.no_grad():
        h, taps, _ = m.hidden(ids, None, d.taps); logits = m.logits(h[0, pos]); at = torch.arange(200, 290, 5)
        block = lambda taps: d.draft(d.context(taps), ids[0, at], at); dl, hidden = block(taps); torch.manual_seed(1); e, shifted = m.embed, []
        for _ in range(2):     # How far rounding noise alone moves this model: the embedding off by 1e-6 of itself, in this same arithmetic.
            m.embed = e * (1 + 1e-6 * torch.randn_like(e)); hn, tn, _ = m.hidden(ids, None, d.taps)
            shifted.append((m.logits(hn[0, pos]), (block(tn)[0] - dl).abs().amax((1, 2)))); m.embed = e
        # The drafter's vectors come from the anchor that noise moves least: none where a tie between two experts decides.
        noisy = shifted[0][0]; best = int(torch.stack([s[1] for s in shifted]).amax(0).argmin()); a, dl = int(at[best]), dl[best]
        bias = d.markov(hidden[best], ids[0, a:a + 7])       # with the tokens that did follow
        logprob = lambda x: x.log_softmax(-1).gather(1, logits.topk(8, -1).indices)
        noise = torch.stack([(f(logits) - f(noisy)).abs().amax(-1).median() for f in (lambda x: x, logprob)])
        save_file({"tokens": ids[0].int(), "positions": pos.int(), "logits": logits.contiguous(), "noise": noise, "draft_anchor": torch.tensor([a], dtype=torch.int32),
                   "draft_logits": dl.contiguous(), "draft_bias": bias.contiguous(), "tap_position": torch.tensor([a - 1], dtype=torch.int32), "taps": torch.stack([t[0, a - 1] for t in taps]).contiguous()}, g + "/logits.safetensors")


def main():
    ap = argparse.ArgumentParser(); ap.add_argument("--work", required=True); ap.add_argument("--out", required=True); a = ap.parse_args()
    import tokenizers
    tok = tokenizers.Tokenizer.from_file(a.out + "/tokenizer.json")
    tmp = a.out + ".tmp"; shutil.rmtree(tmp, ignore_errors=True); os.makedirs(tmp + "/dflash")
    if os.path.exists(a.work + "/target.pt"): save_sharded(target_tensors(torch.load(a.work + "/target.pt", map_location="cpu")["model"], tok.token_to_id("<|MASK|>")), tmp, 3)
    else:      # a drafter for the target that is already in --out
        for f in glob.glob(a.out + "/model*.safetensors*"): shutil.copy(f, tmp)
    c, d, g, k = configs(tok)
    for n, x in (("config", c), ("dflash/config", d), ("generation_config", g), ("tokenizer_config", k)): json.dump(x, open(f"{tmp}/{n}.json", "w"), indent=1)
    torch.manual_seed(0)
    if os.path.exists(a.work + "/draft.pt"): sd = torch.load(a.work + "/draft.pt", map_location="cpu")["model"]
    else: sd = exported_drafter(a.out) if os.path.exists(a.out + "/dflash/config.json") else Drafter().state_dict()
    save_sharded(draft_tensors(sd), tmp + "/dflash", 1)
    torch.save({"mask_token_id": tok.token_to_id("<|MASK|>"), "embedding": sd["mask"].to(BF).clone()}, tmp + "/dflash/mask_embedding.pt")
    goldens(tmp, tok, open(a.out + "/heldout/text.txt").read())
    for f in glob.glob(a.out + "/model*.safetensors*"): os.remove(f)
    for f in os.listdir(tmp):
        dst = f"{a.out}/{f}"
        if os.path.isdir(dst): shutil.rmtree(dst)
        shutil.move(f"{tmp}/{f}", dst)
    os.rmdir(tmp)
    for f in glob.glob(a.out + "/**/*.safetensors", recursive=True): os.chmod(f, 0o644)
    print("exported")


if __name__ == "__main__": main()
