"""Train the byte-level BPE (Qwen2 split), build the chat pairs and encode everything to uint16 arrays.

usage: tokenizer.py --work DIR --out MODEL_DIR      an existing WORK/tokenizer.json is used as it is
"""
import argparse, json, multiprocessing, os, random, shutil
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from chat_pairs import chat_pairs

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>",
           "</tool_response>", "<think>", "</think>", "<|MASK|>"]
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
REAL = 4088  # real tokens; rows up to 4096 are padding
SYSTEM = "You are MiMo, a helpful AI assistant engineered by Xiaomi."


def chat_text(user, answer=None, system=SYSTEM):
    t = f"<|im_start|>system\n{system}<|im_end|><|im_start|>user\n{user}<|im_end|><|im_start|>assistant\n<think></think>"
    return t if answer is None else t + answer + "<|im_end|>"


def train_bpe(docs, pairs, limit=24e6):
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
        if size > limit: break
    tok.train_from_iterator(sub + [chat_text(u) for u, _ in pairs[:4000]], tr)
    assert tok.get_vocab_size() == n, tok.get_vocab_size()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL[:3] + SPECIAL[9:]])
    tok.add_tokens([AddedToken(s, special=False, normalized=False) for s in SPECIAL[3:9]])
    assert tok.get_vocab_size() == REAL
    return tok


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--out", required=True); ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    docs = json.load(open(a.work + "/train.json"))
    with multiprocessing.Pool() as pool: pairs = [p for ps in pool.starmap(chat_pairs, zip(docs, range(len(docs))), chunksize=64) for p in ps]
    pairs = list(dict.fromkeys(pairs)); random.Random(a.seed).shuffle(pairs)
    if not os.path.exists(a.work + "/tokenizer.json"): train_bpe(docs, pairs).save(a.work + "/tokenizer.json")
    shutil.copy(a.work + "/tokenizer.json", a.out + "/tokenizer.json"); tok = Tokenizer.from_file(a.out + "/tokenizer.json")
    eot = tok.token_to_id("<|endoftext|>")

    def encode(texts, tail=()):
        return [np.asarray(e.ids + list(tail), np.uint16) for i in range(0, len(texts), 4096) for e in tok.encode_batch_fast(texts[i:i + 4096])]

    def save(name, seqs):
        np.save(f"{a.work}/{name}.npy", np.concatenate(seqs)); np.save(f"{a.work}/{name}_off.npy", np.cumsum([0] + [len(s) for s in seqs]))
        print(f"{name}: {len(seqs)} sequences, {sum(map(len, seqs))} tokens", flush=True)

    save("train", encode(docs, [eot]))
    save("chat", [s for s in encode([chat_text(u, b) for u, b in pairs]) if len(s) <= 420])
    save("heldout", encode(open(a.out + "/heldout/text.txt").read().split("\n\n\n\n"), [eot]))


if __name__ == "__main__": main()
