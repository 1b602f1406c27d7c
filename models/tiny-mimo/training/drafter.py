"""Train the DFlash block drafter on the target's own outputs (self-distillation).

usage: [torchrun --nproc-per-node=N] drafter.py --work DIR --model MODEL_DIR [--gen-minutes 1.5 --minutes 4 | --gen-until T1 --until T2 (unix times)]
       [--init MODEL_DIR] [--checkpoint FILE] [--warm]
The exported target continues training prompts (code and chat, generate.py). Every generated position is an anchor: a step takes
rows, runs the frozen target over them for its taps, drafts a block at every anchor and follows the rounds that decoding would
make (chain below). Anchors where a round starts, just behind a rejection, weigh full; the others less.
--init starts from that folder's drafter; layers it lacks start as the identity. --warm only compiles, for the cache.
Under torchrun every process (one a GPU) generates rows of its own, --rows is divided among them and gradients are averaged. With --checkpoint the
same command goes on with a run that was cut short, for what its schedule has left of --minutes, which count from the first step.
"""
import argparse, os, signal, sys, time
import torch, torch.distributed as dist, torch.nn as nn, torch.nn.functional as F
import tokenizers
from train import Muon, Stream, Target, exported_target, guard, rms, rope, rope_tab, BF
from generate import ChatPrompts, CodePrompts, Pool, collect, generate
from model import load_dir
from shape import *

H, KH, HD = DRAFT_HQ, DRAFT_HK, DRAFT_HD
ELSEWHERE = 0.35      # weight of an anchor where no round starts
ENTROPY_LEAST = 0.2   # the cross-entropy's weight in the loss goes from --entropy to this; that of the other part, 1 - overlap, is 1
FLOOR = 0.3           # least share of a block position's weight, however unlikely it is that the draft is right up to it

MARKOV_NAMES = {"w1": "markov_head.markov_w1.weight", "w2": "markov_head.markov_w2.weight", "gate": "markov_head.gate_proj.weight", "gate_b": "markov_head.gate_proj.bias"}      # parameters here -> in the checkpoint
DRAFT_NAMES = {"n1": "input_layernorm.weight", "n2": "post_attention_layernorm.weight", "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
               "o": "self_attn.o_proj.weight", "qn": "self_attn.q_norm.weight", "kn": "self_attn.k_norm.weight", "sink": "self_attn.attention_sink_bias",
               "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight", "down": "mlp.down_proj.weight"}      # likewise, of a layer


def block_rope(x, c, s):              # x [B,A,8,heads,HD], tables [B,A,8,1,ROT/2]
    h = ROT // 2; a, b = x[..., :h].float(), x[..., h:ROT].float()
    return torch.cat([(a * c - b * s).to(BF), (b * c + a * s).to(BF), x[..., ROT:]], -1)


class DLayer(nn.Module):
    def __init__(s):
        super().__init__(); P = nn.Parameter; g = D ** -0.5
        s.n1, s.n2, s.qn, s.kn, s.sink = P(torch.ones(D)), P(torch.ones(D)), P(torch.ones(HD)), P(torch.ones(HD)), P(torch.zeros(H))
        s.q, s.k, s.v = (P(torch.randn(n * HD, D) * g) for n in (H, KH, KH)); s.o = P(torch.zeros(D, H * HD))
        s.gate, s.up, s.down = P(torch.randn(DRAFT_FF, D) * g), P(torch.randn(DRAFT_FF, D) * g), P(torch.zeros(D, DRAFT_FF))

    def forward(s, x, f, anchors, cos, sin, bc, bs):
        """x [B,A,8,D] FP32 blocks, f [B,T,D] BF16 context features, anchors [B,A]; tables of the T context and the block positions."""
        B, A = anchors.shape; T = f.shape[1]; G = H // KH
        h = rms(x, s.n1)
        q = block_rope(rms((h @ s.q.to(BF).T).view(B, A, BLOCK, H, HD), s.qn), bc, bs) * HD ** -0.5
        kb = block_rope(rms((h @ s.k.to(BF).T).view(B, A, BLOCK, KH, HD), s.kn), bc, bs); vb = (h @ s.v.to(BF).T).view(B, A, BLOCK, KH, HD) * VS
        kc = rope(rms((f @ s.k.to(BF).T).view(B, T, KH, HD), s.kn), (cos, sin)); vc = (f @ s.v.to(BF).T).view(B, T, KH, HD) * VS
        qg = q.view(B, A, BLOCK, KH, G, HD)
        qx = qg.permute(0, 3, 4, 1, 2, 5).reshape(B * KH, G * A * BLOCK, HD)
        sc = torch.bmm(qx, kc.permute(0, 2, 3, 1).reshape(B * KH, HD, T)).view(B, KH, G, A, BLOCK, T).float()
        past = anchors.view(B, 1, 1, A, 1, 1) - torch.arange(T, device=f.device)        # context ends before the anchor and goes back as far as the window of each row
        sc = torch.where((past > 0) & (past + torch.arange(BLOCK, device=f.device)[:, None] < DRAFT_WIN), sc, -1e9)
        qb = qg.permute(0, 1, 3, 4, 2, 5).reshape(B * A * KH, G * BLOCK, HD)
        kbt = kb.permute(0, 1, 3, 4, 2).reshape(B * A * KH, HD, BLOCK)
        sb = torch.bmm(qb, kbt).view(B, A, KH, G, BLOCK, BLOCK).permute(0, 2, 3, 1, 4, 5).float()       # [B,KH,G,A,8,8]
        z = s.sink.view(1, KH, G, 1, 1, 1)
        m = torch.maximum(torch.maximum(sc.amax(-1, keepdim=True), sb.amax(-1, keepdim=True)), z).detach()
        ec, eb = (sc - m).exp(), (sb - m).exp(); n = ec.sum(-1, keepdim=True) + eb.sum(-1, keepdim=True) + (z - m).exp()
        o = torch.bmm((ec / n).to(BF).reshape(B * KH, G * A * BLOCK, T), vc.permute(0, 2, 1, 3).reshape(B * KH, T, HD)).view(B, KH, G, A, BLOCK, HD)
        pb = (eb / n).to(BF).permute(0, 3, 1, 2, 4, 5).reshape(B * A * KH, G * BLOCK, BLOCK)
        ob = torch.bmm(pb, vb.permute(0, 1, 3, 2, 4).reshape(B * A * KH, BLOCK, HD)).view(B, A, KH, G, BLOCK, HD)
        o = o.permute(0, 3, 4, 1, 2, 5) + ob.permute(0, 1, 4, 2, 3, 5)
        x = x + o.reshape(B, A, BLOCK, H * HD) @ s.o.to(BF).T
        h = rms(x, s.n2)
        return x + (F.silu(h @ s.gate.to(BF).T) * (h @ s.up.to(BF).T)) @ s.down.to(BF).T


class Drafter(nn.Module):
    def __init__(s):
        super().__init__(); taps = D * len(TAPS)
        s.fc, s.hn, s.norm = nn.Parameter(torch.randn(D, taps) * taps ** -0.5), nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        s.w1, s.w2 = nn.Parameter(torch.randn(V, DRAFT_RANK) * DRAFT_RANK ** -0.5), nn.Parameter(torch.zeros(V, DRAFT_RANK))
        s.gate, s.gate_b = nn.Parameter(torch.zeros(DRAFT_RANK, D + DRAFT_RANK)), nn.Parameter(torch.zeros(DRAFT_RANK))
        s.mask = nn.Parameter(torch.randn(D) * 0.1); s.layers = nn.ModuleList(DLayer() for _ in range(DRAFT_L))

    def forward(s, taps, anchors, embed, ids):
        """taps [B,T,5D] bf16, anchors [B,A] positions; returns hidden [B,A,7,D]."""
        B, T, _ = taps.shape; A = anchors.shape[1]; dev = taps.device
        f = rms(taps @ s.fc.to(BF).T, s.hn); cos, sin = rope_tab(T + BLOCK, DRAFT_THETA, dev)
        pos = anchors[..., None] + torch.arange(BLOCK, device=dev); bc, bs = (c[pos].unsqueeze(-2) for c in (cos, sin))      # [B,A,8,1,32]
        e = F.embedding(ids.gather(1, anchors), embed).float()
        x = torch.cat([e[:, :, None], s.mask.expand(B, A, BLOCK - 1, D)], 2)
        for l in s.layers: x = l(x, f, anchors, cos[:T], sin[:T], bc, bs)
        return rms(x, s.norm)[:, :, 1:]

    def markov(s, h, previous):
        """Hidden rows h [...,D], the token before each [...] -> what w2 turns into the bias of their logits, [...,R] (the gated Markov head of DSpark, arXiv 2607.05147)."""
        e = F.embedding(previous, s.w1).to(BF)
        return (torch.sigmoid((torch.cat([h, e], -1) @ s.gate.to(BF).T).float() + s.gate_b) * e).to(BF)


def exported_drafter(model):
    """The parameters of MODEL/dflash, to go on from; layers beyond its own start as the identity (their output matrices are zero), a Markov head that it lacks adds nothing."""
    w = load_dir(model + "/dflash"); torch.manual_seed(0); sd = Drafter().state_dict() | {"fc": w["fc.weight"], "hn": w["hidden_norm.weight"], "norm": w["norm.weight"], "mask": torch.load(model + "/dflash/mask_embedding.pt")["embedding"]}
    sd |= {a: w[b] for a, b in MARKOV_NAMES.items() if b in w}
    return sd | {f"layers.{i}.{a}": w[f"layers.{i}.{b}"] for i in range(DRAFT_L) for a, b in DRAFT_NAMES.items() if f"layers.{i}.{b}" in w}


def frozen(t, dev):
    """The target as generation and distillation read it: matrices in BF16, no gradients."""
    for l in t.layers:
        for p in (l.q, l.k, l.v, l.o, l.gu, l.down): p.data = p.data.to(BF)
    t.head.data = t.head.data.to(BF)
    return t.to(dev).eval().requires_grad_(False)


@torch.no_grad()
def features(t, ids):
    """What the drafter and its loss read of the target, for rows ids [N,T]: taps [N,T,5D] and final norm [N,T,D], BF16."""
    hid, taps, _ = t.hidden(ids, False, TAPS)
    return torch.cat(taps, -1), hid


def windows(x):
    """x [B,U,...] of U positions in a row -> [B,U-6,7,...]: what the 7 drafted rows of a block at each of the first U - 6 look at."""
    return x.unfold(1, BLOCK - 1, 1).movedim(-1, 2)


def score(h, teacher, head, y):
    """Drafter rows h [B,A,7,D+R] and their head [V,D+R], whose first D columns are the target's; target rows teacher [B,A+6,D], what follows each, y [B,A+6]
    -> both logits and normalisers, log p(y) of both, argmax == y."""
    lg, tg = (h.reshape(-1, D + DRAFT_RANK) @ head.T).view(*h.shape[:3], V), teacher @ head[:, :D].T; f, g, yw = lg.float(), tg.float(), windows(y); zl, zt = f.logsumexp(-1), g.logsumexp(-1)
    return lg, tg, zl, zt, f.gather(-1, yw[..., None])[..., 0] - zl, windows(g.gather(-1, y[..., None])[..., 0] - zt), f.argmax(-1) == yw


def gradient(lg, tg, zl, zt, y, weight, sampled, entropy, head, h):
    """Of sum(weight x (entropy x cross-entropy + 1 - overlap)) with respect to h and to the head's last R columns; and that sum. A draft from p is accepted with chance sum(min(p, m)),
    its overlap with what the token is chosen by: the target's distribution q where tokens are sampled, all on y where they are greedy (there the
    cross-entropy is half hard and half soft, for the sake of sampling from such a context)."""
    f = lg.float(); p, q = (f - zl[..., None]).exp(), windows((tg.float() - zt[..., None]).exp())
    m = torch.where(sampled[:, None, None, None], q, (torch.arange(V, device=y.device) == windows(y)[..., None]).float()); goal = 0.5 * (m + q)
    under = (p < m).float(); grad = entropy * (p - goal) + p * ((p * under).sum(-1, keepdim=True) - under)
    grad = (grad * weight[..., None]).to(BF).view(-1, V)
    return (grad @ head).view(h.shape), grad.T @ h.view(-1, h.shape[-1])[:, D:], (weight * (entropy * (zl - (goal * f).sum(-1)) + 1 - torch.minimum(p, m).sum(-1))).sum()


def chain(step):
    """Where rounds start in rows of anchors, anchor a being followed by anchor a + step[a] (step [B,A] >= 1): a mask of those reached from 0."""
    B, A = step.shape; jump = F.pad((torch.arange(A, device=step.device) + step).clamp_max(A), (0, 1), value=A)      # A: past the end
    seen = torch.zeros(B, A + 1, device=step.device); seen[:, 0] = 1
    for _ in range(A.bit_length()):                     # after i turns: everything within 2^i rounds
        seen = (seen + torch.zeros_like(seen).scatter_add_(1, jump, seen)).clamp_max(1); jump = jump.gather(1, jump)
    return seen[:, :A]


class Step:
    """Forward and backward of one batch. The loss's gradient is written out, so the [rows, V] logits stay in BF16 and are made once."""
    def __init__(s, t, d): s.t, s.d, s.score, s.gradient, s.entropy = t, d, score, gradient, torch.ones((), device=t.embed.device)

    def compile(s):
        torch._dynamo.config.cache_size_limit = 64
        for l in [*s.t.layers, *s.d.layers]: nn.Module.compile(l, dynamic=False)
        s.score, s.gradient = torch.compile(score, dynamic=False), torch.compile(gradient, dynamic=False)

    def eager(s):
        for l in [*s.t.layers, *s.d.layers]: l._compiled_call_impl = None
        s.score, s.gradient = score, gradient

    def __call__(s, ids, first, end, sampled, new, backward=True):
        """Rows ids [B,T] generated in first..end-1 -> (loss, tokens per round as decoded, both on the device)."""
        B, T = ids.shape; n = BLOCK - 1; taps, hid = features(s.t, ids)
        at = first[:, None] + torch.arange(new + n, device=ids.device); valid, at = windows(at[:, 1:] < end[:, None]), at.clamp_max(T - 1)
        h = s.d(taps, at[:, :new], s.t.embed, ids)          # with gradients in any case: one compiled form
        h = torch.cat([h, s.d.markov(h, windows(ids.gather(1, at[:, :-1])))], -1)      # where a draft counts, those before it were right
        with torch.no_grad():
            y = ids.gather(1, at[:, 1:]); teacher = hid.gather(1, at[:, :-1, None].expand(-1, -1, D)); head = torch.cat([s.t.head, s.d.w2.to(BF)], 1)
            lg, tg, zl, zt, lp, lq, top = s.score(h.detach(), teacher, head, y); drawn = sampled[:, None, None]
            chance = torch.where(drawn, (lp - lq).clamp_max(0), lp).exp()                                  # of matching the target's token
            hit = torch.where(drawn, torch.rand_like(chance) < chance, top) & valid
            step = hit.int().cumprod(-1).sum(-1) + 1; starts = chain(step) * valid[..., 0]
            gamma = torch.exp(-torch.arange(n, device=ids.device) / GAMMA); before = F.pad(chance.cumprod(-1)[..., :-1], (1, 0), value=1.0)
            weight = (starts + ELSEWHERE * (1 - starts))[..., None] * gamma * (FLOOR + (1 - FLOOR) * before) * valid
            weight = weight / weight.sum().clamp_min(1e-6)
            grad, grad_w2, loss = s.gradient(lg, tg, zl, zt, y, weight, sampled, s.entropy, head, h.detach())
        if backward: h.backward(grad); s.d.w2.grad = grad_w2.float()
        return loss, (step * starts).sum() / starts.sum().clamp_min(1)


def warm_compile(step, shapes, limit, dev):
    """Compile for each (rows, T, new); an error, or running over `limit` seconds, leaves the step without compilation."""
    def late(*_): raise TimeoutError(f"compilation took over {limit} s")
    t0 = time.time(); old = signal.signal(signal.SIGALRM, late); signal.alarm(limit)
    try:
        step.compile()
        for rows, T, new in shapes:
            z = torch.zeros(rows, dtype=torch.long, device=dev)
            step(torch.zeros(rows, T, dtype=torch.long, device=dev), z + 8, z + 8 + new, z > 0, new); print(f"compiled {rows} x {T}: {time.time() - t0:.0f} s", flush=True)
    except Exception as e: step.eager(); print(f"no compilation ({type(e).__name__}: {str(e)[:300]})", flush=True)
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, old); step.d.zero_grad(set_to_none=True)


def average(params, f):
    """Gradients become their means over the processes, in one flat buffer that also carries each one's clock f; returns that mean, on the device."""
    flat = torch.cat([p.grad.flatten() for p in params] + [params[0].new_tensor([f])]); dist.all_reduce(flat); flat /= dist.get_world_size()
    torch._foreach_copy_([p.grad for p in params], [x.view_as(p) for x, p in zip(flat.split([*map(torch.numel, params), 1]), params)])
    return flat[-1]


def write(state, path): torch.save(state, path + ".tmp"); os.replace(path + ".tmp", path)


def rows_of(a, t, pools, per_step, seed, until, dev):
    """Fill the pools; returns held-out ones, the same in every run: of code and of long code 4 steps' rows, the first half greedy."""
    tk = tokenizers.Tokenizer.from_file(a.model + "/tokenizer.json"); real = tk.get_vocab_size(); stop = torch.tensor([tk.token_to_id(x) for x in ("<|im_end|>", "<|endoftext|>")], device=dev)
    held = [Pool(*a.code_row), Pool(*a.long_row)]
    for p, n in zip(held, per_step):
        prompts, lengths = CodePrompts(Stream(a.work, "heldout", 0.3, 5, dev), 5).get(4 * n, p.new, p.T); temp = (torch.arange(4 * n, device=dev)[:, None] >= 2 * n).float()
        p.add(generate(t, prompts, lengths, p.new, temp, real, torch.Generator(dev).manual_seed(5)), lengths, stop[:0], temp[:, 0] > 0); p.close()
    sources = [*(CodePrompts(Stream(a.work, "train", 0.5, seed + i, dev), seed + i) for i in range(2)), ChatPrompts(a.work, tk.token_to_id("</think>"), seed, dev)]
    collect(t, sources, pools, a.gen_rows or (6144 if dev == "cuda" else 64), a.greedy, real, stop, seed, until, dev)
    return held


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--model", required=True); ap.add_argument("--seed", type=int, default=3); ap.add_argument("--init")
    ap.add_argument("--gen-minutes", type=float, default=1.5); ap.add_argument("--minutes", type=float, default=4); ap.add_argument("--gen-until", type=float); ap.add_argument("--until", type=float)
    ap.add_argument("--code-row", type=int, nargs=2, default=[512, 160], help="tokens of a row, and the generated ones of them"); ap.add_argument("--long-row", type=int, nargs=2, default=[2048, 512], help="likewise, of code"); ap.add_argument("--chat-row", type=int, nargs=2, default=[256, 128])
    ap.add_argument("--gen-rows", type=int, help="sequences of a code row's length generated together; 6144 on CUDA, else 64"); ap.add_argument("--greedy", type=float, default=0.6, help="share of greedy rows")
    ap.add_argument("--rows", type=int, default=32, help="code rows per step; long and chat rows take the same number of tokens"); ap.add_argument("--lr", type=float, default=0.02); ap.add_argument("--entropy", type=float, default=1.0, help="weight of the cross-entropy in the loss at the start")
    ap.add_argument("--compile-limit", type=int, default=90, help="seconds; 0 = no compilation"); ap.add_argument("--warm", action="store_true")
    ap.add_argument("--checkpoint", help="state of the run, written every 30 s and read at the start; generated rows lie beside it")
    a = ap.parse_args(); rank, world = (int(os.environ.get(k, v)) for k, v in (("RANK", 0), ("WORLD_SIZE", 1))); dev = "cuda" if torch.cuda.is_available() else "cpu"
    if dev == "cuda": torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    begin = time.time(); torch.manual_seed(a.seed); d = Drafter().to(dev); rows = a.rows // world
    pools = [Pool(*a.code_row), Pool(*a.long_row), Pool(*a.chat_row)]; shapes = [(rows * a.code_row[0] // p.T, p.T, p.new) for p in pools]
    if a.warm:
        warm_compile(Step(frozen(Target(), dev), d), shapes, a.compile_limit, dev); return
    if world > 1: dist.init_process_group("nccl" if dev == "cuda" else "gloo")
    if rank: sys.stdout = open(os.devnull, "w")
    if a.init: d.load_state_dict(exported_drafter(a.init))
    every = list(d.parameters()); markov = [d.w1, d.w2, d.gate, d.gate_b]; rest = [p for p in every if all(p is not x for x in markov)]
    groups = [{"params": markov, "share": 0.5}, {"params": [p for p in rest if p.ndim == 1], "share": 0.15}]      # of the learning rate
    muon, adam = Muon([p for p in rest if p.ndim == 2], a.lr), torch.optim.AdamW(groups, lr=a.lr, betas=(0.9, 0.95), weight_decay=0, fused=dev == "cuda")
    f, step = 0.0, 0
    if a.checkpoint and os.path.exists(a.checkpoint):
        c = torch.load(a.checkpoint, map_location=dev); f, step = c["f"], c["step"]; print(f"goes on at step {step}, f {f:.3f}", flush=True)
        d.load_state_dict(c["model"]); adam.load_state_dict(c["adam"]); torch._foreach_copy_([m for _, m in muon.groups], c["muon"])
    if rank == 0: save(d, a.work, step, 0)
    t = frozen(exported_target(a.model), dev); kept = a.checkpoint and f"{a.checkpoint}.rows{rank}"; seed = a.seed + 1000 * rank; torch.manual_seed(seed + step)
    if kept and os.path.exists(kept):
        held = [Pool(*a.code_row), Pool(*a.long_row)]
        for p, x in zip([*pools, *held], torch.load(kept, map_location=dev)): vars(p).update(x)
    else:
        held = rows_of(a, t, pools, [x[0] for x in shapes], seed, a.gen_until or begin + a.gen_minutes * 60, dev)
        if kept: write([vars(p) for p in [*pools, *held]], kept)
    if dev == "cuda": torch.cuda.empty_cache()
    run = Step(t, d); n_gen = torch.tensor(sum(p.tokens for p in pools), device=dev)
    if dev == "cuda" and a.compile_limit: warm_compile(run, shapes, a.compile_limit, dev)
    if world > 1: dist.all_reduce(n_gen)      # and the clocks start together
    n_gen = int(n_gen)
    def heldout():      # tokens per round: of code greedy, sampled, of long code likewise
        x = [run(p.ids[i].long(), p.first[i], p.end[i], p.sampled[i], p.new, backward=False)[1] for p in held for i in torch.arange(len(p.ids), device=dev).chunk(4)]
        return torch.stack(x).view(4, 2).mean(1).tolist()
    look = 25 if dev == "cuda" else 1      # the device is waited for, and the clock looked at, every so many steps
    f0, t0 = f, time.time(); seconds = max(1.0, a.until - t0) / (1 - f) if a.until else a.minutes * 60; last = saved = t0; told = step
    while f < 1:
        lr = min(1, (step + 1) / 100, (1 - f) / 0.8)                      # warm-up, constant, linear to zero at the end of the time
        k = step % 3; run.entropy.fill_(max(ENTROPY_LEAST, a.entropy - f)); loss, rate = run(*pools[k].batch(shapes[k][0]), pools[k].new)
        clock = f0 + (time.time() - t0) / seconds
        if world > 1: clock = average(every, clock)                       # all processes go by the same one
        guard(every); muon.step(lr)
        for g in adam.param_groups: g["lr"] = g["share"] * a.lr * lr
        adam.step(); d.zero_grad(set_to_none=True)
        step += 1
        if step % look and step != 2: continue
        if dev == "cuda": torch.cuda.synchronize()
        f = float(clock); now = time.time()
        if rank == 0 and (step in (2, 100) or now - last > 10):
            now_held = "greedy {:.2f}, temperature 1 {:.2f}, long {:.2f}, {:.2f}".format(*heldout()); print(f"{time.strftime('%H:%M:%S')} step {step} f {f:.3f} {('code', 'long', 'chat')[k]} loss {loss.item():.4f}"
                  f" tokens/round {rate.item():.2f} held-out code: {now_held}; {(now - last) / (step - told) * 1e3:.1f} ms/step", flush=True); last, told = time.time(), step
            if now - saved > 30:
                save(d, a.work, step, n_gen); saved = now
                if a.checkpoint: write({"model": d.state_dict(), "muon": [m for _, m in muon.groups], "adam": adam.state_dict(), "f": f, "step": step}, a.checkpoint)
    if rank == 0: save(d, a.work, step, n_gen); print("done", step, flush=True)
    if world > 1: dist.destroy_process_group()


def save(d, work, step, n_gen): write({"model": {k: v.to(BF) for k, v in d.state_dict().items()}, "step": step, "gen": n_gen}, work + "/draft.pt")


if __name__ == "__main__": main()
