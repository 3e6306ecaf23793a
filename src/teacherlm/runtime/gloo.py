"""Several processes on CPUs."""


def use_gloo_on_cpus() -> None:
    """Let accelerate's processes on CPUs work together over gloo.

    accelerate 1.15 asks for the backend of the device and finds none for a CPU that DeepSpeed is to use.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *args, **options: ("gloo", DistributedType.MULTI_CPU)
