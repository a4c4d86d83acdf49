import copy

import pytest
import timm
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from vision_backbones import soft_cap
from vision_backbones.soft_cap import SoftCapAttention, flex_soft_capped_attention, soft_capped_attention


def direct(qkv, cap, scale):
    """The definition, in one line of plain torch."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return ((cap * torch.tanh(scale * (q @ k.mT) / cap)).softmax(-1) @ v).transpose(1, 2)


def value_and_gradient(function, qkv, cap=5.0, scale=0.25):
    qkv = qkv.detach().requires_grad_()
    out = function(qkv, cap, scale)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape))
    return out.detach(), qkv.grad


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_qkv(images=3, tokens=13, heads=4, width=8, dtype=torch.float64):
    return 4 * torch.randn(images, tokens, 3, heads, width, dtype=dtype)


# Logits a chunk: less than one matrix, one, some heads, everything.
@pytest.mark.parametrize("chunk", [1, 169, 5 * 169, 2**20])
def test_every_chunking_equals_the_definition(chunk, monkeypatch):
    monkeypatch.setattr(soft_cap, "CHUNK", chunk)
    qkv = random_qkv()
    for got, expected in zip(
        value_and_gradient(soft_capped_attention, qkv), value_and_gradient(direct, qkv), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("chunk", [1, 50, 2**20])
def test_gradients_are_derivatives(chunk, monkeypatch):
    monkeypatch.setattr(soft_cap, "CHUNK", chunk)
    qkv = random_qkv(2, 4, 2, 3).requires_grad_()
    torch.autograd.gradcheck(lambda x: soft_capped_attention(x, 2.0, 0.3), (qkv,))


@pytest.mark.parametrize("cap", [1.0, 30.0, 41.0, 1e6])
def test_float32_is_as_exact_as_the_definition(cap):
    exact = value_and_gradient(direct, random_qkv(), cap)
    qkv = random_qkv()
    exact, plain, tiled = (
        value_and_gradient(direct, qkv, cap),
        value_and_gradient(direct, qkv.float(), cap),
        value_and_gradient(soft_capped_attention, qkv.float(), cap),
    )
    for truth, reference, got in zip(exact, plain, tiled, strict=True):
        allowed = 3 * (reference - truth).abs().max() + 1e-6 * truth.abs().max()
        assert (got - truth).abs().max() < allowed


def test_bfloat16_is_at_least_as_exact_as_the_definition():
    qkv = random_qkv(tokens=40)
    low = qkv.bfloat16()
    exact = value_and_gradient(direct, low.double())
    plain, tiled = value_and_gradient(direct, low), value_and_gradient(soft_capped_attention, low)
    for truth, reference, got in zip(exact, plain, tiled, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got - truth).norm() < 1.1 * (reference - truth).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cap", [None, 5.0, 30.0, 40.0, 50.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_rows_of_extreme_logits(sign, cap, dtype):
    """All logits of a row far below zero, or far above: weights are those of the few that differ."""
    qkv = torch.ones(1, 300, 3, 1, 8)
    qkv[:, :, 0] *= sign * 40
    qkv[:, :, 1, :, :4] += torch.linspace(0, 0.1, 300)[None, :, None, None]
    qkv[:, :, 2] = torch.linspace(100, 300, 300)[None, :, None, None]
    qkv = qkv.to(dtype)
    q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
    logits = 0.3 * (q @ k.mT)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = (logits.softmax(-1) @ v).transpose(1, 2)
    got = soft_capped_attention(qkv.requires_grad_(), cap, 0.3)
    got.float().sum().backward()
    torch.testing.assert_close(got.double(), expected, atol=0, rtol={torch.float32: 1e-4}.get(dtype, 0.05))
    assert qkv.grad.isfinite().all()


@pytest.mark.parametrize("cap", [30.0, 40.0])
def test_large_gradients_of_logits_at_the_cap(cap):
    """Every logit near minus the cap: the sums of exponentials are as small as they get."""
    qkv = torch.randn(1, 9, 3, 1, 8, dtype=torch.float64)
    qkv[:, :, 0], qkv[:, :, 1] = qkv[:, :, 0].abs() * 10, -qkv[:, :, 1].abs() * 10
    grads = []
    for function, dtype in ((direct, torch.float64), (soft_capped_attention, torch.float32)):
        given = qkv.detach().to(dtype).requires_grad_()
        (function(given, cap, 0.3) * 1e6).sum().backward()
        grads.append(given.grad.double())
    assert (grads[1] - grads[0]).norm() < 1e-3 * grads[0].norm()


def test_no_tokens():
    assert soft_capped_attention(torch.randn(2, 0, 3, 2, 8), 30.0, 0.3).shape == (2, 0, 2, 8)


def test_without_a_cap_in_reach_it_is_ordinary_attention():
    qkv = random_qkv(dtype=torch.float32)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    expected = scaled_dot_product_attention(q, k, v, scale=0.1).transpose(1, 2)
    torch.testing.assert_close(soft_capped_attention(qkv, 1e6, 0.1), expected, atol=1e-5, rtol=1e-5)


def saved_elements(qkv):
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
    with hooks:
        soft_capped_attention(qkv, 30.0, 0.25)
    return sum(saved)


@pytest.mark.parametrize(("dtype", "matrices"), [(torch.float32, 0), (torch.bfloat16, 2)])
def test_what_is_saved_for_the_backward_pass(dtype, matrices):
    """Inputs, output and a sum for each row; matrices of logits in low precision alone."""
    qkv = random_qkv(images=3, tokens=13, heads=4, dtype=dtype)
    expected = qkv.numel() * 4 // 3 + 3 * 4 * 13 * (1 + matrices * 13)
    assert saved_elements(qkv.requires_grad_()) == expected
    with torch.no_grad():
        assert saved_elements(qkv) == 0


def attention(**kwargs):
    return SoftCapAttention(32, num_heads=4, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **kwargs)


def module_gradients(module, tokens, run):
    module = copy.deepcopy(module)
    run(module, tokens).float().square().sum().backward()
    return {name: p.grad for name, p in module.named_parameters()}


@pytest.mark.parametrize("kwargs", [{}, {"qk_norm": True}, {"scale_norm": True}, {"gated": True}])
def test_the_module_is_timms_but_for_the_cap(kwargs):
    ours, tokens = attention(**kwargs), torch.randn(2, 9, 32)
    timms = timm.layers.Attention(32, num_heads=4, qkv_bias=True, norm_layer=torch.nn.LayerNorm, **kwargs)
    timms.load_state_dict(ours.state_dict())
    ours.cap = 1e6
    torch.testing.assert_close(ours(tokens), timms(tokens), atol=1e-5, rtol=1e-5)
    expected = module_gradients(timms, tokens, lambda m, x: m(x))
    for name, gradient in module_gradients(ours, tokens, lambda m, x: m(x)).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_without_a_cap_the_module_is_timms(dtype, tolerance):
    """In low precision on CPUs by an own way, which is compared with the exact numbers."""
    ours, tokens = attention(), torch.randn(2, 9, 32)
    timms = timm.layers.Attention(32, num_heads=4, qkv_bias=True, norm_layer=torch.nn.LayerNorm)
    timms.load_state_dict(ours.state_dict())
    ours.cap = None
    expected = module_gradients(timms, tokens, lambda m, x: m(x)) | {"out": timms(tokens)}
    ours.to(dtype)
    got = module_gradients(ours, tokens.to(dtype), lambda m, x: m(x)) | {"out": ours(tokens.to(dtype))}
    for name in expected.keys() - {"qkv.bias"}:  # keys' biases have no gradient but rounding
        assert (got[name].float() - expected[name]).norm() < tolerance * expected[name].norm(), name


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_nothing(qk_norm, reentrant):
    module, tokens = attention(qk_norm=qk_norm), torch.randn(2, 9, 32, requires_grad=True)
    plain = module_gradients(module, tokens, lambda m, x: m(x))
    again = module_gradients(module, tokens, lambda m, x: checkpoint(m, x, use_reentrant=reentrant))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(qk_norm, backward_inside):
    module, tokens = attention(qk_norm=qk_norm), torch.randn(2, 9, 32)
    exact = module_gradients(module, tokens, lambda m, x: m(x))
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = module(tokens)
        assert out.dtype == torch.bfloat16
        loss = out.float().square().sum()
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    # All at once: keys' biases have almost no gradient, since a shift of all logits of a row changes nothing.
    got = torch.cat([p.grad.flatten() for p in module.parameters()])
    expected = torch.cat([exact[name].flatten() for name, _ in module.named_parameters()])
    assert (got - expected).norm() < 0.03 * expected.norm()


def test_autocast_leaves_float32_inputs_alone():
    qkv = random_qkv(dtype=torch.float32)
    expected = value_and_gradient(soft_capped_attention, qkv)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_gradient(soft_capped_attention, qkv)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_inference_modes_and_meta_device():
    module, tokens = attention(), torch.randn(2, 9, 32)
    expected = module(tokens)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(module(tokens), expected)
    assert module.to("meta")(tokens.to("meta")).shape == expected.shape


def test_dropout_drops_weights_in_training_only():
    module, tokens = attention(attn_drop=0.5), torch.randn(2, 9, 32)
    undropped = attention()
    undropped.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(tokens), undropped(tokens))
    module.train()
    assert not torch.equal(module(tokens), module(tokens))
    mean = torch.stack([module(tokens) for _ in range(2000)]).mean(0)
    torch.testing.assert_close(mean, undropped(tokens), atol=0.02, rtol=0.05)
    module_gradients(module, tokens, lambda m, x: m(x))


def test_flex_attention_computes_the_same(monkeypatch):
    """Uncompiled, which is its definition; the compiled form needs a GPU."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(soft_cap, "_compiled_flex_attention", lambda: flex_attention)
    qkv = random_qkv(tokens=16, width=16, dtype=torch.float32)
    torch.testing.assert_close(flex_soft_capped_attention(qkv, 5.0, 0.25), direct(qkv, 5.0, 0.25), atol=1e-5, rtol=1e-5)
    module = attention()
    module.flex = True  # without effect on CPU
    module(torch.randn(2, 9, 32)).sum().backward()


def test_distributed_data_parallel(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        module, tokens = attention(), torch.randn(2, 9, 32)
        plain = module_gradients(module, tokens, lambda m, x: m(x))
        parallel = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(module))
        parallel(tokens).square().sum().backward()
        for name, p in parallel.module.named_parameters():
            torch.testing.assert_close(p.grad, plain[name])
    finally:
        torch.distributed.destroy_process_group()
