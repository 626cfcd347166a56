"""Where programs run that a model wrote: contained, bounded, and watched from outside."""

from moe_codegen.evaluation.sandbox.limits import Limits as Limits
from moe_codegen.evaluation.sandbox.process import End as End
from moe_codegen.evaluation.sandbox.process import Finished as Finished
from moe_codegen.evaluation.sandbox.sandbox import Sandbox as Sandbox
from moe_codegen.evaluation.sandbox.sandbox import open_sandbox as open_sandbox
from moe_codegen.evaluation.sandbox.unconfined import WARNING as WARNING
