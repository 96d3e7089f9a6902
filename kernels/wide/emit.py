"""The glue text of a wide layer's module, and its launch."""

from __future__ import annotations

import attrs

from kernels.program import Argument, Launch, Pointer, Precision, TensorMap
from kernels.wide.config import Method, WideConfig
from kernels.wide.layer import K_TILE_BYTES, WideLayer

_STORAGE = {
    Precision.FP16: "Fp16",
    Precision.BF16: "Bf16",
    Precision.TF32: "Tf32<1>",
    Precision.FP32: "Tf32<3>",
}


@attrs.frozen
class Matrix:
    """A row-major matrix on the card, of as many rows as the bucket.

    Attributes:
        pointer: Its first element, column offset included; 16-byte aligned.
        leading: Elements from one row to the next, which are a multiple of 16 bytes.
    """

    pointer: Pointer
    leading: int


@attrs.frozen
class WideKernel:
    """A layer's kernel: text of its module, and how to launch it.

    The text depends neither on the layer's rows nor on where things lie, so layers of one shape
    and config share a module.

    Attributes:
        text: CUDA C++; includes ``wide_sm90.cuh`` or ``wide_mma.cuh``.
        entry: The kernel's name.
    """

    text: str
    entry: str
    layer: WideLayer
    config: WideConfig

    def launch(
        self,
        source: int,
        *,
        counts: Pointer,
        weights: Pointer,
        output: Matrix | None,
        inputs: tuple[Matrix, ...],
        eights: Matrix | None = None,
        staged: tuple[Matrix, ...] = (),
        extra: tuple[Argument, ...] = (),
        dependent: bool = True,
    ) -> Launch:
        """Return the launch.

        The kernel's parameters, in order: counts, weights, Y, its leading dimension, the same of Y
        as e4m3 if the layer stores it so; with WGMMA a
        tensor map of each input (of each group of each input where a group's k is no multiple of
        64) and of each staged matrix, with MMA pointer and leading dimension of each input and of
        each staged matrix; then the epilogue's own.

        Args:
            source: Index of the module in ``Program.sources``.
            counts: int32; counts[0] is the number of rows. Written before the chain's first launch.
            weights: What ``pack`` made; 16-byte aligned.
            output: Y of 16-bit floats; None if the layer does not store them.
            inputs: The X_i.
            eights: Y of e4m3, if the layer stores it so.
            staged: What the epilogue wants; CROSS: x_0, x.
            extra: Values of ``Epilogue.parameters``.
            dependent: Whether it may start before the launch ahead of it has ended.
        """
        layer, config = self.layer, self.config
        wanted = (len(layer.segments), layer.epilogue.n_staged, len(layer.epilogue.parameters))
        if (len(inputs), len(staged), len(extra)) != wanted:
            raise ValueError(f"{self.entry}: want {wanted} inputs, staged and extra arguments")
        if (output is not None, eights is not None) != (layer.stores_halves, layer.stores_eights):
            raise ValueError(f"{self.entry}: Y has other matrices than the layer stores")
        arguments: list[Argument] = [counts, weights]
        # What is not stored has no place; the kernel does not look at what stands for it.
        for matrix in (output or eights, eights):
            if matrix is not None:
                arguments += [matrix.pointer, matrix.leading]
        if config.method is Method.WGMMA:
            for k, matrix in zip(layer.segments, inputs, strict=True):
                arguments += self._input_maps(k, matrix)
            arguments += [self._staged_map(matrix) for matrix in staged]
        else:
            for matrix in (*inputs, *staged):
                arguments += [matrix.pointer, matrix.leading]
        return Launch(
            source=source,
            entry=self.entry,
            grid=(config.clusters(layer) * config.split, 1, 1),
            block=config.threads,
            arguments=(*arguments, *extra),
            cluster=config.split,
            shared_bytes=config.shared_bytes(layer.epilogue.n_staged),
            dependent=dependent,
        )

    def _input_maps(self, k: int, matrix: Matrix) -> list[Argument]:
        layer, config = self.layer, self.config
        n_maps = _maps_of(layer, k)
        columns, item = k * layer.groups // n_maps, layer.element_bytes
        return [
            TensorMap(
                attrs.evolve(matrix.pointer, offset=matrix.pointer.offset + item * columns * i),
                rows=layer.rows,
                columns=columns,
                row_bytes=item * matrix.leading,
                box_rows=config.tile_rows,
                box_columns=layer.k_tile,
                element_bytes=item,
            )
            for i in range(n_maps)
        ]

    def _staged_map(self, matrix: Matrix) -> TensorMap:
        layer, config = self.layer, self.config
        columns = min(config.tile_columns, K_TILE_BYTES // 2)
        return TensorMap(
            matrix.pointer,
            rows=layer.rows,
            columns=layer.n * layer.groups,
            row_bytes=2 * matrix.leading,
            box_rows=config.tile_rows // config.split,
            box_columns=columns,
            swizzle_bytes=2 * columns,
        )


def _maps_of(layer: WideLayer, k: int) -> int:
    """A tile of K that reaches into the next group's columns would read them: a map a group."""
    return 1 if k % layer.k_tile == 0 else layer.groups


def emit(layer: WideLayer, config: WideConfig, entry: str, precision: Precision) -> WideKernel:
    """Return the kernel of a layer; ``WideKernel.launch`` says its parameters.

    Raises:
        ValueError: If a group of an input would not start at 16 bytes.
    """
    part = 16 // layer.element_bytes
    if layer.groups > 1 and any(k % part for k in layer.segments):
        problem = f"a group's columns must be a multiple of {part}: {layer.segments}"
        raise ValueError(f"{entry}: {problem}")
    write = _wgmma_text if config.method is Method.WGMMA else _mma_text
    return WideKernel(write(layer, config, entry, precision), entry, layer, config)


def _layer_text(layer: WideLayer) -> list[str]:
    return [
        "struct Layer {",
        f"  static constexpr int N = {layer.n}, GROUPS = {layer.groups};",
        f"  static constexpr int K_TILES = {layer.k_tiles};",
        f"  static constexpr int N_PADDED = {layer.n_padded}, BIAS_COLUMNS = {layer.bias_columns};",
        f"  static constexpr size_t BIAS_OFFSET = {layer.bias_offset};",
        *(
            [f"  static constexpr size_t SCALE_OFFSET = {layer.scale_offset};"]
            if layer.eights
            else []
        ),
        *(
            [f"  static constexpr size_t OUT_SCALE_OFFSET = {layer.out_scale_offset};"]
            if layer.stores_eights
            else []
        ),
        "};",
    ]


def _epilogue_text(layer: WideLayer) -> tuple[list[str], str]:
    """Return the parameters and the expression that makes the epilogue."""
    epilogue = layer.epilogue
    values = [name for _, name in epilogue.parameters] or list(epilogue.literals)
    parameters = [f"{kind} {name}" for kind, name in epilogue.parameters]
    return parameters, f"{epilogue.type_name}{{{', '.join(values)}}}"


def _kernel_text(
    layer: WideLayer, config: WideConfig, entry: str, parameters: list[str], inputs: str, call: str
) -> list[str]:
    extra, epilogue = _epilogue_text(layer)
    fixed = ["const int* counts", "const u8* weights", f"{_element(layer)}* y", "int ld_y"]
    outputs, kinds = "y, ld_y", "Tile, Layer"
    if layer.stores_eights:
        fixed += ["u8* eights", "int ld_eights"]
        outputs += ", eights, ld_eights"
        kinds += ", true" if layer.stores_halves else ", false"
        call += "_eights"
    return [
        f"KERNEL void __launch_bounds__({config.threads}, {config.blocks_per_sm}) {entry}(",
        "    " + ",\n    ".join(fixed + parameters + extra) + ") {",
        f"  const Inputs inputs{{{inputs}}};",
        f"  {call}<{kinds}>(counts, weights, {outputs}, inputs, {epilogue});",
        "}",
    ]


def _element(layer: WideLayer) -> str:
    return "float" if layer.floats else "u16"


def _wgmma_text(layer: WideLayer, config: WideConfig, entry: str, precision: Precision) -> str:
    names: list[str] = []
    choices: list[str] = []
    first = 0
    for i, k in enumerate(layer.segments):
        count = _maps_of(layer, k)
        maps = [f"x{i}" if count == 1 else f"x{i}_{j}" for j in range(count)]
        names += maps
        chosen = maps[-1]
        for j in range(count - 2, -1, -1):
            chosen = f"group == {j} ? {maps[j]} : {chosen}"
        shift = f" + group * {k}" if count == 1 and layer.groups > 1 else ""
        last = first + -(-k // layer.k_tile)
        column = f"x = (k_tile - {first}) * {layer.k_tile}{shift}; return {chosen};"
        choices.append(
            f"    if (k_tile < {last}) {{ {column} }}" if last < layer.k_tiles else f"    {column}"
        )
        first = last
    staged = [f"s{i}" for i in range(layer.epilogue.n_staged)]
    which = staged[-1] if staged else "nullptr"
    for i in range(len(staged) - 2, -1, -1):
        which = f"i == {i} ? {staged[i]} : {which}"
    c = config
    tile = (
        f"WideTile<{_STORAGE[precision]}, {c.tile_rows}, {c.tile_columns}, {c.stages}, {c.split}, "
        f"{len(staged)}{', true' if layer.eights else ''}>"
    )
    lines = [
        '#include "wide_sm90.cuh"',
        layer.epilogue.text,
        f"using Tile = {tile};",
        f'static_assert(Tile::SHARED_BYTES == {c.shared_bytes(len(staged))}, "as launched");',
        *_layer_text(layer),
        "struct Inputs {",
        f"  const void {', '.join('*' + name for name in names + staged)};",
        "  DEVICE const void* input(int k_tile, int group, int& x) const {",
        *choices,
        "  }",
        f"  DEVICE const void* staged(int i) const {{ return {which}; }}",
        "  DEVICE void prefetch() const {",
        *(f"    prefetch_tensor_map({name});" for name in names + staged),
        "  }",
        "};",
        *_kernel_text(
            layer,
            config,
            entry,
            [f"const __grid_constant__ TensorMap {name}" for name in names + staged],
            ", ".join("&" + name for name in names + staged),
            "wide_linear",
        ),
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _mma_text(layer: WideLayer, config: WideConfig, entry: str, precision: Precision) -> str:
    names = [f"x{i}" for i in range(len(layer.segments))]
    staged = [f"s{i}" for i in range(layer.epilogue.n_staged)]
    choices: list[str] = []
    first = 0
    for i, k in enumerate(layer.segments):
        shift = f" + group * {k}" if layer.groups > 1 else ""
        last = first + -(-k // layer.k_tile)
        column = (
            f"const int k = (k_tile - {first}) * {layer.k_tile}; "
            f"return {{x{i} + k{shift}, ld_x{i}, {k} - k}};"
        )
        choices.append(
            f"    if (k_tile < {last}) {{ {column} }}" if last < layer.k_tiles else f"    {column}"
        )
        first = last
    which, which_ld = (staged[-1], f"ld_{staged[-1]}") if staged else ("nullptr", "0")
    for i in range(len(staged) - 2, -1, -1):
        which = f"i == {i} ? {staged[i]} : {which}"
        which_ld = f"i == {i} ? ld_{staged[i]} : {which_ld}"
    c, element = config, _element(layer)
    tile = f"WideMmaTile<{_STORAGE[precision]}, {c.tile_rows}, {c.tile_columns}, {c.stages}>"
    members = [f"  const {element}* {name};\n  int ld_{name};" for name in names + staged]
    parameters = [
        p for name in names + staged for p in (f"const {element}* {name}", f"int ld_{name}")
    ]
    values = [v for name in names + staged for v in (name, f"ld_{name}")]
    lines = [
        f'#include "{"wide_mma" if precision.has_halves else "wide_tf32"}.cuh"',
        layer.epilogue.text,
        f"using Tile = {tile};",
        f'static_assert(Tile::SHARED_BYTES == {c.shared_bytes(0)}, "as launched");',
        *_layer_text(layer),
        "struct Inputs {",
        *members,
        f"  DEVICE WideRow<{element}> input(int k_tile, int group) const {{",
        *choices,
        "  }",
        f"  DEVICE const {element}* staged(int i) const {{ return {which}; }}",
        f"  DEVICE int staged_ld(int i) const {{ return {which_ld}; }}",
        "};",
        *_kernel_text(layer, config, entry, parameters, ", ".join(values), "wide_mma_linear"),
    ]
    return "\n".join(line for line in lines if line) + "\n"
