"""Pre-training, MXFP4 quantisation-aware training and chat tuning of the target in one wall-clock-bounded run.

usage: train.py --work DIR --minutes 8 [--batch 131072] [--seq 1024] [--no-compile]
       train.py --work DIR --init MODEL_DIR --until UNIX_TIME [--peak 0.2] [--experts bf16]
With --init an exported checkpoint is read back into master weights and polished: quantisation-aware throughout, a short
warm-up to a share of the learning rate and then linear to zero. The state says whether the held-out loss fell. With --experts bf16
it is polished without rounding the experts, which formats.sh compares with.
Learning rate, QAT switch and data mix are functions of elapsed time / --minutes. All tokens live on the device, windows
are gathered there, and a step never waits for the device; one line every 20 steps does. On CUDA the layers are compiled
before the clock starts; where that fails the run goes on without.
"""
import argparse, os, signal, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F
from model import Model
from quantize import MxSte
from shape import *

BF = torch.bfloat16
CHUNK = 128      # sliding layers attend in chunks of queries; a sequence length is a multiple of it


def rms(x, w): return (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS) * w).to(BF)


def rope_tab(T, theta, dev, start=0):
    f = theta ** (-torch.arange(0, ROT, 2, dtype=torch.float64, device=dev) / ROT)
    a = torch.outer(torch.arange(start, start + T, dtype=torch.float64, device=dev), f).float()
    return a.cos(), a.sin()


def rope(x, cs):                      # x [..., T, H, dim]; tables [T, ROT/2]
    c, s = cs[0][:, None], cs[1][:, None]; h = ROT // 2
    a, b = x[..., :h].float(), x[..., h:ROT].float()
    return torch.cat([(a * c - b * s).to(x.dtype), (b * c + a * s).to(x.dtype), x[..., ROT:]], -1)


def attend(q, k, v, window, sink):
    """Causal attention, banded with a sink where `window` is set. q [B,T,HQ,DQ], k [B,T,HK,DQ], v [B,T,HK,DV]."""
    B, T = q.shape[:2]; G = HQ // HK; C = CHUNK
    if not window:
        kk, vv = (t.transpose(1, 2).repeat_interleave(G, 1) for t in (k, F.pad(v, (0, DQ - DV))))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), kk, vv, is_causal=True, scale=DQ ** -0.5)
        return o[..., :DV].transpose(1, 2).reshape(B, T, HQ * DV)
    n = T // C; b = B * n
    def band(t):                      # each chunk's keys: the chunk before it and its own -> [b, 2C, HK, dim]
        p = F.pad(t, (0, 0, 0, 0, C, 0))
        return torch.cat([p[:, :T].reshape(b, C, HK, -1), p[:, C:].reshape(b, C, HK, -1)], 1)
    i = torch.arange(C, device=q.device)[:, None] + C; j = torch.arange(2 * C, device=q.device)[None]
    chunk = torch.arange(n, device=q.device).view(n, 1, 1, 1)
    seen = (j <= i) & (j > i - window) & ((j >= C) | (chunk > 0))            # [n, 1, C, 2C]; never column 0
    qh = (q * DQ ** -0.5).reshape(b, C, HK, G, DQ).permute(0, 2, 3, 1, 4).reshape(b * HK, G * C, DQ)
    kh, vh = band(k).permute(0, 2, 3, 1).reshape(b * HK, DQ, 2 * C), band(v).permute(0, 2, 1, 3).reshape(b * HK, 2 * C, DV)
    s = torch.bmm(qh, kh).view(B, n, HQ, C, 2 * C)
    s = torch.where(seen, s.float(), torch.where(j == 0, sink.view(HQ, 1, 1), -1e9))      # column 0 carries the sink logit
    p = torch.where(j == 0, 0.0, s.softmax(-1)).to(BF)
    o = torch.bmm(p.reshape(b * HK, G * C, 2 * C), vh)
    return o.view(b, HK, G, C, DV).permute(0, 3, 1, 2, 4).reshape(B, T, HQ * DV)


class Layer(nn.Module):
    def __init__(s, i):
        super().__init__(); s.window, s.dense = WIN if SWA[i] else 0, i == 0; g = D ** -0.5
        s.n1, s.n2 = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))
        s.q, s.k, s.v = (nn.Parameter(torch.randn(h, D) * g) for h in (HQ * DQ, HK * DQ, HK * DV))
        s.o = nn.Parameter(torch.zeros(D, HQ * DV))
        s.sink = nn.Parameter(torch.zeros(HQ)) if s.window else None
        if s.dense: s.gu, s.down = nn.Parameter(torch.randn(2 * DFF, D) * g), nn.Parameter(torch.zeros(D, DFF))
        else:
            s.router = nn.Parameter(torch.randn(E, D) * g); s.register_buffer("bias", torch.zeros(E))
            s.gu, s.down = nn.Parameter(torch.randn(E, 2 * FF, D) * g), nn.Parameter(torch.zeros(E, D, FF))

    def weights(s, qat):
        """The feed-forward matrices in BF16, through MXFP4 rounding (straight-through gradient) with `qat`."""
        return tuple((MxSte.apply(w) if qat and not s.dense else w).to(BF) for w in (s.gu, s.down))

    def qkv(s, x, cs):
        B, T, _ = x.shape; h = rms(x, s.n1)
        q, k, v = ((h @ w.to(BF).T).view(B, T, -1, d) for w, d in ((s.q, DQ), (s.k, DQ), (s.v, DV)))
        return rope(q, cs), rope(k, cs), v * VS

    def mix(s, x, o, gu, down):
        """Output projection and feed-forward: returns (x, tokens per expert). Every expert runs as one wide GEMM, with the
        gate weight zero where an expert is not chosen: at this size cheaper than sorting tokens."""
        x = x + o @ s.o.to(BF).T; B, T, _ = x.shape
        h = rms(x, s.n2).view(B * T, D)
        if s.dense:
            g, u = (h @ gu.T).chunk(2, -1)
            return x + ((F.silu(g) * u) @ down.T).view(B, T, D), None
        sc = torch.sigmoid(h.float() @ s.router.T); key = sc.detach() + s.bias; e = torch.arange(E, device=x.device)
        ahead = (key[:, None] > key[:, :, None]) | ((key[:, None] == key[:, :, None]) & (e < e[:, None]))
        chosen = (ahead.sum(-1) < K).float()                         # top-k by rank
        w = sc * chosen; w = w / (w.sum(-1, keepdim=True) + 1e-20)
        g, u = (h @ gu.view(-1, D).T).view(B * T, E, 2 * FF).chunk(2, -1)
        a = (F.silu(g) * u * w.to(BF)[..., None]).view(B * T, E * FF)
        return x + (a @ down.permute(1, 0, 2).reshape(D, E * FF).T).view(B, T, D), chosen.sum(0)

    def forward(s, x, cos, sin, gu, down):
        q, k, v = s.qkv(x, (cos, sin))
        return s.mix(x, attend(q, k, v, s.window, s.sink), gu, down)


def cross_entropy(h, head, y): return F.cross_entropy((h.view(-1, D) @ head.to(BF).T).float(), y.reshape(-1))


class Target(nn.Module):
    """The trained model: FP32 master weights, BF16 matrix products."""
    def __init__(s):
        super().__init__()
        s.embed = nn.Parameter(torch.randn(V, D) * 0.3); s.head = nn.Parameter(torch.zeros(V, D))
        s.norm = nn.Parameter(torch.ones(D)); s.layers = nn.ModuleList(Layer(i) for i in range(L)); s.tables, s.ce = {}, cross_entropy

    def rope(s, T, dev):
        """Per kind of layer (0 full, 1 sliding) the rotary tables of positions 0..T-1."""
        if T not in s.tables: s.tables[T] = [rope_tab(T, th, dev) for th in (THETA_FULL, THETA_SWA)]
        return s.tables[T]

    def hidden(s, ids, qat=False, taps=()):
        """ids [B,T] -> (final norm [B,T,D] bf16, residual taps, tokens per expert [L-1,E])."""
        x = F.embedding(ids, s.embed).float(); cs, out, load = s.rope(ids.shape[1], ids.device), [], []
        for i, l in enumerate(s.layers):
            x, n = l(x, *cs[SWA[i]], *l.weights(qat))
            if n is not None: load.append(n)
            if i in taps: out.append(x.to(BF))
        return rms(x, s.norm), out, torch.stack(load)

    def loss(s, ids, qat):
        h, _, load = s.hidden(ids[:, :-1], qat)
        return s.ce(h, s.head, ids[:, 1:]), load

    def compile(s):
        torch._dynamo.config.cache_size_limit = 64
        for l in s.layers: nn.Module.compile(l, dynamic=False)
        s.ce = torch.compile(cross_entropy, dynamic=False)


def exported_target(model):
    """The weights of an exported checkpoint, dequantised exactly, as a Target on the CPU."""
    m, t = Model(model), Target()
    with torch.no_grad():
        t.embed.copy_(m.embed); t.head.copy_(m.head); t.norm.copy_(m.norm)
        for l, x in zip(t.layers, m.ls):
            for n in ("n1", "n2", "q", "k", "v", "o"): getattr(l, n).copy_(x[n])
            if l.sink is not None: l.sink.copy_(x["sink"])
            if l.dense: l.gu.copy_(torch.cat(x["mlp"][:2])); l.down.copy_(x["mlp"][2])
            else:
                l.router.copy_(x["router"]); l.bias.copy_(x["bias"])
                l.gu.copy_(torch.stack([torch.cat(e[:2]) for e in x["ex"]])); l.down.copy_(torch.stack([e[2] for e in x["ex"]]))
    return t


def newton_schulz(g, steps=5):
    x = g.to(BF); tr = x.shape[-2] > x.shape[-1]
    if tr: x = x.mT
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(BF)
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.mT if tr else x


class Muon:
    """Momentum orthogonalised by Newton-Schulz; matrices of one shape are stepped as one batch."""
    def __init__(s, params, lr, wd=0.01):
        s.lr, s.wd, shapes = lr, wd, {}
        for p in params: shapes.setdefault(p.shape, []).append(p)
        s.groups = [(ps, torch.zeros(len(ps), *shape, device=ps[0].device)) for shape, ps in shapes.items()]
    @torch.no_grad()
    def step(s, scale):
        lr = s.lr * scale
        for ps, m in s.groups:
            g = torch.stack([p.grad for p in ps]); m.lerp_(g, 0.05)
            u = newton_schulz(g.lerp(m, 0.95)).float()
            torch._foreach_mul_(ps, 1 - lr * s.wd)
            torch._foreach_add_(ps, list(u.unbind(0)), alpha=-lr * max(1, u.shape[-2] / u.shape[-1]) ** 0.5)


@torch.no_grad()
def guard(params, limit=1.0):
    """Clip the global gradient norm; a step with a non-finite gradient gets zero gradients. Returns the norm, on the device."""
    gs = [p.grad for p in params]; norm = torch.stack(torch._foreach_norm(gs)).norm()
    scale = torch.where(norm.isfinite(), (limit / (norm + 1e-6)).clamp_max(1), 0.0)
    for g in gs: g.nan_to_num_(0, 0, 0)
    torch._foreach_mul_(gs, scale)
    return norm


class Stream:
    """Random windows, gathered on the device; a share starts at document starts, the rest anywhere."""
    def __init__(s, work, name, aligned, seed, dev):
        s.t = torch.from_numpy(np.load(f"{work}/{name}.npy").astype(np.int32)).to(dev); s.o = torch.from_numpy(np.load(f"{work}/{name}_off.npy")[:-1]).to(dev)
        s.aligned, s.gen = aligned, torch.Generator(dev).manual_seed(seed)
    def whole(s, n, T):
        """n windows spread evenly: the same ones every time."""
        at = torch.linspace(0, len(s.t) - T, n, device=s.t.device).long()
        return s.t[at[:, None] + torch.arange(T, device=at.device)].long()
    def get(s, n, T):
        last, dev = len(s.t) - T, s.t.device
        draw = lambda top: torch.randint(0, top, (n,), generator=s.gen, device=dev)
        at = torch.where(torch.rand(n, generator=s.gen, device=dev) < s.aligned, s.o[draw(len(s.o))].clamp_max(last), draw(last + 1))
        return s.t[at[:, None] + torch.arange(T, device=dev)].long()


def warm_compile(m, batch, lengths, limit):
    """Compile for each sequence length; returns the lengths to train with. An error, or running over `limit` seconds, leaves
    the lengths compiled so far, or where there is none, the model without compilation and every length."""
    def late(*_): raise TimeoutError(f"compilation took over {limit} s")
    t0 = time.time(); old = signal.signal(signal.SIGALRM, late); signal.alarm(limit); ready = []
    try:
        m.compile()
        for T in lengths:
            ids = torch.zeros(batch // T, T + 1, dtype=torch.long, device=m.embed.device)
            m.loss(ids, False)[0].backward(); ready.append(T); print(f"compiled length {T}: {time.time() - t0:.0f} s", flush=True)
    except Exception as e:
        print(f"compilation ended early ({type(e).__name__}: {str(e)[:300]}); compiled lengths {ready}", flush=True)
        if not ready:
            for l in m.layers: l._compiled_call_impl = None
            m.ce = cross_entropy
    finally: signal.alarm(0); signal.signal(signal.SIGALRM, old); m.zero_grad(set_to_none=True)
    return ready or lengths


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--work", required=True); ap.add_argument("--minutes", type=float, default=8); ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--batch", type=int, default=131072, help="tokens per step"); ap.add_argument("--seq", type=int, default=1024, help="every fourth step uses twice this")
    ap.add_argument("--micro", type=int, default=1, help="gradient accumulation, should memory run short")
    ap.add_argument("--lr", type=float, default=0.02); ap.add_argument("--max-steps", type=int, default=10**9)
    ap.add_argument("--init", help="polish this exported checkpoint"); ap.add_argument("--peak", type=float, default=0.2, help="with --init: share of the learning rate")
    ap.add_argument("--experts", choices=["mxfp4", "bf16"], default="mxfp4", help="with --init: how they are rounded while training")
    ap.add_argument("--until", type=float, help="unix time at which training ends, instead of --minutes")
    ap.add_argument("--no-compile", action="store_true"); ap.add_argument("--compile-limit", type=int, default=100, help="seconds")
    a = ap.parse_args()
    dev = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(a.seed); m = (exported_target(a.init) if a.init else Target()).to(dev); ck = a.work + "/target.pt"
    mats = [p for l in m.layers for p in (l.q, l.k, l.v, l.o, l.gu, l.down)]
    ids = {id(p) for p in mats}; small = [p for p in m.parameters() if id(p) not in ids and p is not m.embed]; every = mats + small + [m.embed]
    muon = Muon(mats, a.lr)
    adam = torch.optim.AdamW([{"params": [m.embed], "lr": 0.005}, {"params": small, "lr": 0.003}], betas=(0.9, 0.95), weight_decay=0.0, fused=dev == "cuda")
    base = [g["lr"] for g in adam.param_groups]
    code, chat = Stream(a.work, "train", 0.25, a.seed, dev), Stream(a.work, "chat", 1.0, a.seed + 1, dev)
    held = Stream(a.work, "heldout", 0.0, a.seed, dev)
    print(f"{time.strftime('%H:%M:%S')} {dev}: {sum(p.numel() for p in every) / 1e6:.1f} M parameters, {len(code.t) / 1e6:.1f} M code and {len(chat.t) / 1e6:.1f} M chat tokens", flush=True)
    bias = torch.stack([l.bias for l in m.layers[1:]])
    for l, b in zip(m.layers[1:], bias): l.bias = b                      # rows of one tensor, updated in place
    micro, lengths = a.batch // a.micro, [a.seq] if a.init else [a.seq, 2 * a.seq]
    if dev == "cuda" and not a.no_compile: lengths = warm_compile(m, micro, lengths, a.compile_limit)
    rounded = a.experts == "mxfp4"
    heldout_loss = lambda: m.loss(held.whole(micro // a.seq, a.seq + 1), rounded)[0].item()     # the training shape: nothing to compile anew
    before = heldout_loss() if a.init else None
    t0 = last = saved = time.time(); seconds = a.until - t0 if a.until else a.minutes * 60; f = 0.0; step = tokens = 0
    while f < 1 and step < a.max_steps:
        if a.init: lr, qat, share = a.peak * min(1, (step + 1) / 30, (1 - f) / 0.8), rounded, 0.25
        else:
            lr = min(1, (step + 1) / 100, (1 - f) / 0.6)                 # warm-up, constant, linear to zero
            qat = f > 0.6; share = 0.1 if f < 0.65 else 0.4
        T = lengths[-1] if step % 4 == 3 else lengths[0]; n = max(1, micro // T)
        nc = int(n * share + np.random.default_rng(step).random()); load = 0
        for _ in range(a.micro):
            x = torch.cat([s.get(c, T + 1) for s, c in ((code, n - nc), (chat, nc)) if c])
            loss, cnt = m.loss(x, qat); (loss / a.micro).backward(); load = load + cnt
        norm = guard(every)
        muon.step(lr)
        for g, b in zip(adam.param_groups, base): g["lr"] = b * lr
        adam.step()
        m.zero_grad(set_to_none=True)
        with torch.no_grad(): bias += 0.002 * lr * torch.sign(load.mean(-1, keepdim=True) - load)
        step += 1; tokens += a.micro * n * T; f = (time.time() - t0) / seconds
        if step % 20 == 0 or step == 5:
            msg = f"{time.strftime('%H:%M:%S')} step {step} f {f:.3f} loss {loss.item():.4f} norm {norm.item():.2f}"   # waits for the device
            now = time.time(); done = 5 if step == 5 else 15 if step == 20 else 20
            msg += f" {(now - last) / done * 1e3:.0f} ms/step {done * a.micro * n * T / (now - last):.0f} tok/s {tokens / 1e6:.1f}M qat {qat} imbalance {(load.amax(-1) / load.mean(-1)).max().item():.2f}"
            if step % 200 == 0: msg += f" held-out loss {m.loss(held.get(micro // a.seq, a.seq + 1), qat)[0].item():.4f}"
            print(msg, flush=True); last = time.time()
            if last - saved > 120: save(m, ck, f, step, tokens, before); saved = last
    after = heldout_loss() if a.init else None
    save(m, ck, f, step, tokens, before, after); print("done", step, tokens, *([f"held-out loss {before:.4f} -> {after:.4f}"] if a.init else []), flush=True)


def save(m, ck, f, step, tokens, before=None, after=None):
    """`before` and `after`: held-out losses around a polish, which is kept where it gains more than the noise of FP8 rounding."""
    state = {"model": {k: v.clone() for k, v in m.state_dict().items()}, "progress": f, "step": step, "tokens": tokens}
    if before: state |= {"polish": True, "improved": after is not None and after < 0.998 * before}
    torch.save(state, ck + ".tmp"); os.replace(ck + ".tmp", ck)


if __name__ == "__main__": main()
