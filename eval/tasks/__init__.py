"""The shipped benchmarks, one declaration a file; importing this registers them."""

from eval.tasks import refcoco, ocid_ref, tallyqa, vsr, ai2d, ai2d_abc, vqav2, gqa, vizwiz, textvqa, pope  # noqa: F401, I001
