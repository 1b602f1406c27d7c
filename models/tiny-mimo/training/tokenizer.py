"""Train the byte-level BPE (Qwen2 split) and encode the corpora to uint16 arrays.

usage: tokenizer.py --work DIR --out MODEL_DIR
"""
import argparse, json, os, random
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
           "</tool_response>", "<think>", "</think>", "<|MASK|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
REAL = 4088  # real tokens; rows up to 4096 are padding
SYSTEM = "You are MiMo, a helpful AI assistant engineered by Xiaomi."


def chat_text(user, answer=None, system=SYSTEM):
    t = f"<|im_start|>system\n{system}<|im_end|><|im_start|>user\n{user}<|im_end|><|im_start|>assistant\n<think></think>"
    return t if answer is None else t + answer + "<|im_end|>"


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--out", required=True)
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    docs = json.load(open(a.work + "/train.json")); pairs = json.load(open(a.work + "/chat.json"))
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    n = REAL - len(SPECIAL)
    tr = trainers.BpeTrainer(vocab_size=n, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    sub, size = [], 0
    for d in docs:
        sub.append(d); size += len(d)
        if size > 16e6: break
    tok.train_from_iterator(sub + [chat_text(u) for u, _ in pairs[:4000]], tr)
    assert tok.get_vocab_size() == n, tok.get_vocab_size()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL[:3] + SPECIAL[9:]])
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in SPECIAL[3:9]])
    assert tok.get_vocab_size() == REAL
    tok.save(a.out + "/tokenizer.json")
    eot = tok.token_to_id("<|endoftext|>")

    def enc(texts, end=True):
        out = []
        for i in range(0, len(texts), 512):
            for e in tok.encode_batch(texts[i:i + 512]): out.append(e.ids + ([eot] if end else []))
        return out

    def save(name, seqs):
        np.save(f"{a.work}/{name}.npy", np.concatenate([np.asarray(s, np.uint16) for s in seqs]))
        np.save(f"{a.work}/{name}_off.npy", np.cumsum([0] + [len(s) for s in seqs]))

    code = enc(docs); save("train", code)
    print("train tokens %d, bytes/token %.3f" % (sum(map(len, code)), sum(len(d.encode()) for d in docs) / sum(map(len, code))))
    chat = [s for s in enc([chat_text(u, b) for u, b in pairs], end=False) if len(s) <= 500]
    save("chat", chat)
    print("chat pairs %d tokens %d" % (len(chat), sum(map(len, chat))))
    save("heldout", enc(json.load(open(a.work + "/heldout.json"))))


if __name__ == "__main__": main()
