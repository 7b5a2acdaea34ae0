"""A frozen vision transformer of timm on N:M weights, with adapters and a classifier that train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snn_core.backbones import Backbone, FeatureInfo
from snn_core.backbones.options import check_types, hints_of, one_of
from snn_core.detectors import adapters as forms
from snn_core.detectors.compression import compress_by_magnitude, compress_by_wanda
from snn_core.detectors.frozen import FrozenLinear, freeze
from snn_core.detectors.timm_models import create_model
from snn_core.detectors.weights import Source, load_fitting, read_tensors
from snn_core.errors import ArgumentError
from snn_core.kernels.nm_compress import NMPattern
from snn_core.seeding import seeded

AdapterSpec = str | Mapping[str, Any]
#: Values of compressed weights.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FrozenViT(Backbone):
    """A vision transformer of timm: its weights frozen, every linear layer of its blocks compressed, adapters trained.

    Patch embedding, position embedding, norms and classifier stay dense (see :meth:`dense_layers`): they are a small
    part of the weights, and what reads pixels or trains is no good place to prune. The classifier trains.

    Args:
        model: a name of :func:`snn_core.detectors.list_models`: ``vit_*`` or ``samvit_*``.
        pretrained: path of a safetensors file with timm's names, or a state dict of them (a classifier of another
            number of classes is left out), see :meth:`load_pretrained`; True: let timm fetch its own; None: random.
        in_channels: of the pictures.
        num_classes: of the logits; 0: :meth:`forward` gives the pooled features, and nothing but adapters trains.
        image_size: height and width of the pictures, or one number for both; default that of the model.
        pattern: N:M of the compressed layers; None: they stay dense.
        dtype: of their values, ``"float32"``, ``"bfloat16"`` or ``"float16"``; default that of the layers.
        adapters: forms of :func:`snn_core.detectors.list_adapters`, each a name or ``{"form": name, option: value}``.
        out_indices: blocks whose features :meth:`forward_features` gives; default four, evenly spaced, with the last.
        backend: of the products, see :class:`snn_core.detectors.FrozenLinear`.
        seed: of the random weights of network and adapters.
        model_options: more arguments of timm's class (``depth``, ``embed_dim``, ...).

    Attributes:
        vit: the network of timm.
        spiking: False.
        feature_info: channels, stride and name of each feature map.

    Raises:
        ArgumentError: unknown model, adapter or option (with the nearest), a layer that M does not divide.
        BackendUnavailableError: timm is missing or broken.
        CheckpointError: weights that do not fit; what is missing, unexpected and of another shape is listed.
        DataError: timm could not fetch weights.
    """

    vit: Any

    def __init__(
        self,
        model: str = "vit_base_patch16_224",
        pretrained: Source | bool | None = None,
        in_channels: int = 3,
        num_classes: int = 10,
        *,
        image_size: int | Sequence[int] | None = None,
        pattern: str | None = "2:4",
        dtype: str | None = None,
        adapters: AdapterSpec | Sequence[AdapterSpec] = (),
        out_indices: Sequence[int] | None = None,
        backend: str = "compressed",
        seed: int = 0,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        given = {"image_size": image_size, "adapters": adapters, "out_indices": out_indices}
        check_types(given | {"model_options": model_options}, hints_of(FrozenViT) or {})
        for name, value, least in (("in_channels", in_channels, 1), ("num_classes", num_classes, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ArgumentError(f"{name} is {value!r}; it must be an integer of at least {least}")
        size = image_size if image_size is None or isinstance(image_size, int) else tuple(image_size)
        sides = size if isinstance(size, tuple) else (size, size)
        if size is not None and (len(sides) != 2 or any(side is not None and side < 1 for side in sides)):
            raise ArgumentError(f"image_size is {image_size!r}; it must be a positive integer, or height and width")
        options = {"in_chans": in_channels, "num_classes": num_classes, "img_size": size, **(model_options or {})}
        with seeded(seed, "vit", model):
            network: Any = create_model(model, download=pretrained is True, **options)
        self.vit = network
        if not isinstance(getattr(self.vit, "blocks", None), nn.Module) or not hasattr(self.vit, "patch_embed"):
            raise ArgumentError(f"model: {model!r} ({type(self.vit).__name__}) has no patch_embed and blocks")
        self.model_name, self.in_channels, self.num_classes = model, in_channels, num_classes
        self.backend, self.seed = backend, seed
        self.adapter_specs: list[dict[str, Any]] = []
        self.pattern: NMPattern | None = None
        self.state = forms.Pass()
        self.fronts = nn.ModuleList()
        self.out_indices = _indices(out_indices, len(self.vit.blocks))
        self.feature_info = [
            FeatureInfo(self.vit.embed_dim, int(self.vit.patch_embed.patch_size[0]), f"blocks.{index}")
            for index in self.out_indices
        ]
        freeze(self.vit)
        for module in self.vit.modules():
            if getattr(module, "qkv_bias_separate", None) is False:
                # Attention with rotary positions would read the weight of qkv without calling the layer.
                module.qkv_bias_separate = True
        if num_classes:
            for parameter in self.vit.get_classifier().parameters():
                parameter.requires_grad_(True)
        if pattern is not None:
            self.compress_weights(pattern, dtype=dtype)
        elif dtype is not None:
            raise ArgumentError(f"dtype is {dtype!r}, which is of compressed values; pattern is None")
        for spec in [adapters] if isinstance(adapters, (str, Mapping)) else adapters:
            self.adapt(spec)
        if pretrained is not None and not isinstance(pretrained, bool):
            self.load_pretrained(pretrained)

    def load_pretrained(self, source: Source) -> FrozenViT:
        """Weights into the network as it is: compressed layers keep the largest of theirs, adapters stay.

        Args:
            source: path of a safetensors file, or a state dict: with timm's names (a classifier that was trained for
                another number of classes is left out), or what :meth:`state_dict` gave, adapters included.

        Raises:
            ArgumentError: neither of them.
            CheckpointError: the file is missing or damaged, or the weights do not fit; what is missing, unexpected and
                of another shape is listed.
        """
        tensors = read_tensors(source)
        own = self.state_dict()
        if any(name.startswith("vit.") for name in tensors):
            skip = () if self.vit.num_classes else ("vit.head.",)
            load_fitting(self, tensors, {name: name for name in own}, skip)
            return self
        kept = [name for name in own if name.startswith("vit.") and ".adapters." not in name]
        names = {name.removeprefix("vit.").replace(".base.", "."): name for name in kept}
        load_fitting(self, tensors, names, _classifier({name: own[names[name]] for name in names}, tensors))
        return self

    def drop_head(self) -> None:
        """Leave the classifier away, for good: a call gives the feature maps from now on."""
        self.features_only = True
        self.vit.reset_classifier(0)

    def compress_weights(
        self,
        pattern: NMPattern | str = "2:4",
        calibration: Tensor | Iterable[Tensor] | None = None,
        dtype: str | None = None,
    ) -> FrozenViT:
        """Compress every linear layer of the blocks, in place; before adapters are attached.

        Args:
            pattern: N:M.
            calibration: pictures ``[B, C, H, W]``: the weights that stay are chosen as Wanda does (see
                :func:`snn_core.detectors.compress_by_wanda`); None: by magnitude.
            dtype: of the stored values, as for the class.

        Raises:
            ArgumentError: layers that M does not divide, calibration pictures that are none, another ``dtype``, a
                network that is compressed already or has adapters.
        """
        if self.pattern is not None or self.adapter_specs:
            state = f"compressed to {self.pattern}" if self.pattern is not None else "with adapters"
            raise ArgumentError(f"pattern: the network is {state} already")
        if dtype is not None:
            one_of("dtype", dtype, DTYPES)
        stored, blocks = None if dtype is None else DTYPES[dtype], self.vit.blocks
        if calibration is None:
            compress_by_magnitude(blocks, pattern, stored, self.backend)
        else:
            compress_by_wanda(self, blocks, pattern, calibration, stored, self.backend)
        self.pattern = NMPattern.parse(pattern)
        return self

    def adapt(self, spec: AdapterSpec) -> FrozenViT:
        """Attach one form of adapters to all blocks; the network's answer does not change.

        Args:
            spec: the name of a form, or ``{"form": name, option: value}``.

        Raises:
            ArgumentError: unknown form or option.
        """
        options = {"form": spec} if isinstance(spec, str) else dict(spec)
        form = options.pop("form", None)
        like = next(self.vit.blocks.parameters())  # a norm; compressed values may be narrower
        host = forms.Host(self.vit.blocks, self.vit.embed_dim, self.in_channels, self.state)
        with seeded(self.seed, "adapter", len(self.adapter_specs), str(form)):
            front = forms.attach(host, form, options)  # type: ignore[arg-type]
        if front is not None:
            self.fronts.append(front)
        for module in self.modules():
            if isinstance(module, forms.Adapter):
                module.to(like.device, like.dtype)
        self.fronts.to(like.device, like.dtype)
        self.adapter_specs.append({"form": form, **options})
        return self.train(self.training)

    def forward(self, x: Tensor) -> Any:
        """``[B, C, H, W]`` -> logits ``[B, num_classes]``, pooled features, or with ``features_only`` their list."""
        final, features, _ = self._run(x)
        return features if self.features_only else self.vit.forward_head(final)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """``[B, C, H, W]`` -> feature maps ``[B, c, h, w]``, one a block of ``out_indices``."""
        return self._run(x)[1]

    def forward_detector(self, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The feature maps, and what adapters add: ``balance`` (a loss; 0 without routers or in evaluation mode) and,
        where there is an adversary detector, ``adversary`` (its logits ``[B]``).
        """
        return self._run(x)[1:]

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        self._check(x)
        grid = tuple(self.vit.patch_embed.dynamic_feat_size(tuple(x.shape[2:])))
        self.state.begin(getattr(self.vit, "num_prefix_tokens", 0), grid)
        try:
            for front in self.fronts:
                front(x)
            final, features = self.vit.forward_intermediates(x, self.out_indices)
            losses, more = self.state.losses, {}
            more["balance"] = torch.stack(losses).mean() if losses else x.new_zeros(())
            if self.state.adversary is not None:
                more["adversary"] = self.state.adversary
        finally:
            self.state.end()
        return final, features, more

    def _check(self, x: Tensor) -> None:
        embed = self.vit.patch_embed
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point() or x.shape[1] != self.in_channels:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ArgumentError(f"x is {got}; expected floating point [B, {self.in_channels}, H, W]")
        size, patch = tuple(x.shape[2:]), tuple(embed.patch_size)
        strict = getattr(embed, "strict_img_size", True) and embed.img_size is not None
        if strict and size != tuple(embed.img_size):
            raise ArgumentError(f"x has pictures of {list(size)}; the network was made for {list(embed.img_size)}")
        if not strict and (any(side % of for side, of in zip(size, patch, strict=True)) or 0 in size):
            raise ArgumentError(f"x has pictures of {list(size)}; allowed: multiples of the patch {list(patch)}")

    def train(self, mode: bool = True) -> FrozenViT:
        """As ``nn.Module.train`` for what trains: adapters, and the classifier with the dropout before it.

        What is frozen stays in evaluation mode, wherever adapters stand in it: dropout, stochastic depth, batch norm of
        a stem. What has no parameters goes with the module that it is a part of.
        """
        super().train(mode)
        _follow(self.vit, mode, False)
        classifier = list(self.vit.get_classifier().parameters())
        if isinstance(getattr(self.vit, "head_drop", None), nn.Module):
            self.vit.head_drop.train(mode and any(parameter.requires_grad for parameter in classifier))
        return self

    def compressed_layers(self) -> dict[str, FrozenLinear]:
        """The layers that are compressed, by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, FrozenLinear)}

    def dense_layers(self) -> dict[str, str]:
        """The frozen or pre-trained layers with a dense weight matrix, by name, and why they stay dense."""
        found = {}
        for name, module in self.vit.named_modules():
            inside = ".adapters" in name
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not inside:
                first, last = name.startswith("patch_embed"), name.startswith("head")
                reason = "first layer" if first else "classifier, which trains" if last else "not in a block"
                if name.startswith("blocks"):
                    reason = "pattern is None"
                    if self.pattern is not None:
                        linear = isinstance(module, nn.Linear)
                        reason = f"fewer than {self.pattern.m} inputs" if linear else "a convolution"
                found[f"vit.{name}"] = reason
        return found

    def extra_repr(self) -> str:
        return f"model={self.model_name!r}, pattern={self.pattern}, adapters={self.adapter_specs}"


def _follow(module: nn.Module, mode: bool, trains: bool) -> None:
    """Training mode for what trains whole, adapters in it left aside; ``trains``: whether the module around it does."""
    own = [value for name, value in module.named_parameters() if ".adapters." not in f".{name}"]
    trains = all(value.requires_grad for value in own) if own else trains
    module.training = mode and trains
    for name, child in module.named_children():
        inside = isinstance(module, forms.Beside) and name == "adapters"
        child.train(mode) if inside else _follow(child, mode, trains)


def _indices(given: Sequence[int] | None, depth: int) -> list[int]:
    if given is None:
        parts = min(4, depth)
        return [depth * (part + 1) // parts - 1 for part in range(parts)]
    indices = [index + depth if isinstance(index, int) and index < 0 else index for index in given]
    numbers = all(isinstance(index, int) and 0 <= index < depth for index in indices)
    if not indices or not numbers or indices != sorted(set(indices)):
        raise ArgumentError(f"out_indices is {list(given)}; expected ascending numbers of the {depth} blocks")
    return indices


def _classifier(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Beginnings of the names of a classifier that is left out: of other classes, not wanted, or not there.

    One whose common parts fit is wanted whole, so that what it lacks is said.
    """
    wanted, found = (
        {name: value.shape for name, value in tensors.items() if name.startswith("head")}
        for tensors in (expected, given)
    )
    other = any(wanted[name] != found[name] for name in wanted.keys() & found.keys())
    return ("head",) if other or not wanted or not found else ()
