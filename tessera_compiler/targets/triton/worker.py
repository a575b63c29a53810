"""Compiles Triton sources in a process of its own: `python -m …triton.worker FOLDER FIRST STEP`.

A compiler that ends in a crash takes only this process with it. `jobs.json` in the folder lists the jobs; this worker
does every STEP-th from FIRST on, and leaves `<number>.json` and the code beside it. Nothing that it writes depends on
where the folder lies.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

from tessera_compiler.targets.triton.code_object import describe_cubin

MOST_REGISTERS, REGISTERS_OF_A_BLOCK = 255, 65_536
"""Of a thread of an NVIDIA device, and of all of a block."""
SWIZZLES = (0, 32, 64, 128)
"""Bytes, by the number that CUDA and Triton have for it."""
_COUNTED = {"vgpr_count": "registers", "vgpr_spill_count": "vgpr_spills", "private_segment_fixed_size": "spilled_bytes"}


def compile_job(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Compiles one source; returns what `<number>.json` says."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name = f"source_{job['number']}"
    spec = importlib.util.spec_from_file_location(name, folder / f"{job['source']}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{job['source']}.py cannot be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    signature = dict(job["signature"])
    aligned = [number for number, kind in enumerate(signature.values()) if kind.startswith("*")]
    source = ASTSource(
        getattr(module, job["symbol"]),
        signature,
        constexprs={},
        attrs={(number,): [["tt.divisibility", 16]] for number in aligned},
    )
    target = GPUTarget(job["backend"], job["arch"], job["warp_size"])
    compiled = triton.compile(source, target=target, options=job["options"])
    compiled = _with_all_registers(source, target, job["options"], compiled)
    result: dict[str, Any] = {
        "entry": compiled.metadata.name,
        "shared_bytes": compiled.metadata.shared,
        "scratch_bytes": getattr(compiled.metadata, "global_scratch_size", 0) or 0,
        "scratch_alignment": getattr(compiled.metadata, "global_scratch_align", 1) or 1,
        "warps": compiled.metadata.num_warps,
        "boxes": [
            {"box": each["block_size"], "swizzle": SWIZZLES[each["swizzle"]]}
            for each in getattr(compiled.metadata, "tensordesc_meta", None) or []
        ],
    }
    for kind in ("cubin", "ptx", "hsaco"):
        if kind in compiled.asm:
            code = compiled.asm[kind]
            (folder / f"{job['number']}.{kind}").write_bytes(code if isinstance(code, bytes) else code.encode())
    if "amdgcn" in compiled.asm:
        for field, meaning in _COUNTED.items():
            found = re.search(rf"\.{field}:\s+(\d+)", compiled.asm["amdgcn"])
            result[meaning] = int(found.group(1)) if found else 0
    return result


def _with_all_registers(source: Any, target: Any, options: dict[str, Any], compiled: Any) -> Any:
    """NVIDIA's assembler sometimes keeps to few registers and leaves values in memory; told that it may have as many as
    there are, it does not."""
    import triton

    if "cubin" not in compiled.asm or "maxnreg" in options:
        return compiled
    found = describe_cubin(compiled.asm["cubin"])
    most = min(MOST_REGISTERS, REGISTERS_OF_A_BLOCK // (32 * options["num_warps"]))
    if not found["spilled_bytes"] or found["registers"] >= most:
        return compiled
    again = triton.compile(source, target=target, options={**options, "maxnreg": most})
    fewer = describe_cubin(again.asm["cubin"])["spilled_bytes"] < found["spilled_bytes"]
    return again if fewer else compiled


def main(folder: Path, first: int, step: int) -> None:
    from triton import knobs

    knobs.compilation.disable_line_info = True
    knobs.cache.dir = str(folder / f"cache_{first}")
    jobs = json.loads((folder / "jobs.json").read_text(encoding="utf-8"))
    for job in jobs[first::step]:
        try:
            result = compile_job(folder, job)
        except Exception as error:  # whatever the compiler says about a kernel is for the one who asked for it
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
        (folder / f"{job['number']}.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
