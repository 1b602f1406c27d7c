"""Continuations by the frozen target: what the drafter learns from.

Thousands of sequences advance together, one token a step, over preallocated caches (sliding layers: a ring of their window).
At that width the device stays busy without graph capture. Rows of one batch have prompts of nearly one length: the shortest is
prefilled, the rest of the longer ones is fed in place of the choices.
"""
import time
import numpy as np, torch, torch.nn.functional as F
from decode_attention import decode_attention
from train import CHUNK, attend, rms, BF
from shape import *


@torch.no_grad()
def generate(t, prompts, lengths, new, temp, real, gen):
    """prompts [B,P] (rows padded behind lengths [B]), temp [B,1] (0 = greedy) -> ids [B, P + new]; row b continues from lengths[b]."""
    (B, P), dev = prompts.shape, prompts.device; total, first = P + new, int(lengths.min())
    ids = F.pad(prompts, (0, new)); greedy = not bool(temp.any()); padded = F.pad(prompts[:, :first], (0, -first % CHUNK))
    caches = [tuple(torch.zeros(B, HK, l.window or total, d, dtype=BF, device=dev) for d in (DQ, DV)) for l in t.layers]
    cs, last = t.rope(padded.shape[1], dev), torch.empty(B, D, dtype=BF, device=dev)
    for rows in torch.arange(B, device=dev).split(max(1, 2 ** 18 // first)):  # prefill, so many tokens at once
        x = F.embedding(padded[rows], t.embed).float(); at = slice(int(rows[0]), int(rows[-1]) + 1)
        for i, (l, (kc, vc)) in enumerate(zip(t.layers, caches)):
            q, k, v = l.qkv(x, cs[SWA[i]]); begin = max(0, first - kc.shape[2])
            slots = torch.arange(begin, first, device=dev) % kc.shape[2]
            kc[at, :, slots], vc[at, :, slots] = k[:, begin:first].transpose(1, 2), v[:, begin:first].transpose(1, 2)
            x, _ = l.mix(x, attend(q, k, v, l.window, l.sink), l.gu, l.down)
        last[at] = rms(x[:, first - 1], t.norm)
    cs = t.rope(-(-total // CHUNK) * CHUNK, dev)
    for n in range(first, total):
        lg = (last @ t.head.T)[:, :real].float()
        if not greedy: lg = lg / temp.clamp_min(1e-3) - torch.empty_like(lg).exponential_(generator=gen).log() * (temp > 0)
        ids[:, n] = torch.where(lengths > n, ids[:, n], lg.argmax(-1))
        x = F.embedding(ids[:, n:n + 1], t.embed).float()
        for i, (l, (kc, vc)) in enumerate(zip(t.layers, caches)):
            q, k, v = l.qkv(x, tuple(c[n:n + 1] for c in cs[SWA[i]])); slot = n % kc.shape[2]
            kc[:, :, slot], vc[:, :, slot] = k[:, 0], v[:, 0]
            o = decode_attention(q[:, 0], kc, vc, l.sink, min(n + 1, kc.shape[2]))
            x, _ = l.mix(x, o.reshape(B, 1, HQ * DV), l.gu, l.down)
        last = rms(x[:, 0], t.norm)
    return ids


class CodePrompts:
    """Beginnings of training files, as in heldout/code.jsonl, and windows from anywhere: half and half."""
    def __init__(s, stream, seed): s.stream, s.r = stream, np.random.default_rng(seed)
    def get(s, n, new, T):
        P = int(s.r.integers(40, T - new + 1))
        return s.stream.get(n, P), torch.full((n,), P, device=s.stream.t.device)


class ChatPrompts:
    """Chat prompts cut right after the generation prompt, in batches of neighbours by length. Every prompt comes up once before one comes up again;
    from the second time on half of them with up to 32 tokens of the reference's answer, but no more than half of it: other greedy answers."""
    def __init__(s, work, think, seed, dev):
        t, o = np.load(work + "/chat.npy"), np.load(work + "/chat_off.npy"); s.r, s.t, s.queue = np.random.default_rng(seed), torch.from_numpy(t.astype(np.int32)).to(dev), []
        at = np.flatnonzero(t == think); row = np.searchsorted(o, at, "right") - 1; row, first = np.unique(row, return_index=True)
        s.begin, s.len = o[row], at[first] - o[row] + 1; s.answer, s.given = o[row + 1] - at[first] - 1, 0 * row
    def get(s, n, new, T):
        """Up to n prompts with room for `new` tokens in a row of T."""
        if not s.queue:
            total = s.len + s.given; fit = np.flatnonzero(total <= T - new); fit = s.r.permutation(fit); fit = fit[np.argsort(total[fit], kind="stable")]
            s.queue = [(fit[i:i + n], total[fit[i:i + n]]) for i in range(0, len(fit), n)]; s.r.shuffle(s.queue)
            s.given = s.r.integers(0, 2, len(s.len)) * np.minimum(s.r.integers(1, 33, len(s.len)), s.answer // 2)
        rows, length = s.queue.pop(); dev = s.t.device; length = torch.from_numpy(length).to(dev); P = int(length.max())
        at = torch.from_numpy(s.begin[rows]).to(dev)[:, None] + torch.arange(P, device=dev)
        return torch.where(torch.arange(P, device=dev) < length[:, None], s.t[at.clamp_max(len(s.t) - 1)].long(), 0), length


class Pool:
    """Generated rows of one length T on the device: ids [N,T] int16, first generated position, one past the last one kept, sampled or greedy."""
    def __init__(s, T, new): s.T, s.new, s.parts, s.tokens = T, new, [], 0
    def add(s, ids, first, stop, sampled):
        at = torch.arange(ids.shape[1], device=ids.device); made = (at >= first[:, None]) & (at < first[:, None] + s.new)
        done = made & torch.isin(ids, stop); end = torch.where(done.any(1), done.int().argmax(1) + 1, first + s.new)
        keep = end - first >= 4; ids = F.pad(ids, (0, s.T - ids.shape[1]))[keep]
        s.parts.append((ids.to(torch.int16), first[keep], end[keep], sampled[keep])); s.tokens += int((end - first)[keep].sum())
    def close(s): s.ids, s.first, s.end, s.sampled = map(torch.cat, zip(*s.parts)); s.parts = []
    def batch(s, n):
        i = torch.randint(0, len(s.ids), (n,), device=s.ids.device)
        return s.ids[i].long(), s.first[i], s.end[i], s.sampled[i]


def collect(t, sources, pools, rows, greedy_share, real, stop, seed, until, dev):
    """Fill the pools evenly, `rows` at a time of the first one's length, with continuations of their sources' prompts until the given unix time (each at least once)."""
    gen = torch.Generator(dev).manual_seed(seed); t0 = last = time.time(); n = 0
    while n < len(pools) or time.time() + (time.time() - last) * 0.5 < until:
        last = time.time(); pool, source = min(zip(pools, sources), key=lambda x: x[0].tokens); prompts, lengths = source.get(rows * min(pools[0].T, pool.T) // pool.T, pool.new, pool.T)
        temp = (torch.rand(len(prompts), 1, generator=gen, device=dev) >= greedy_share).float()
        pool.add(generate(t, prompts, lengths, pool.new, temp, real, gen), lengths, stop, temp[:, 0] > 0); n += 1
        total = sum(p.tokens for p in pools); now = time.time()
        print(f"{time.strftime('%H:%M:%S')} batch {n}: {len(prompts)} rows, prompts {int(lengths.min())}-{int(lengths.max())}, {now - last:.2f} s; {total / 1e6:.2f} M tokens, {total / (now - t0):.0f} tok/s", flush=True)
    for p in pools: p.close()
    return total
