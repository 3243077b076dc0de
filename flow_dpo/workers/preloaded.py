"""The imports of the fork server before it forks workers. Garbage collection is off meanwhile, which saves a sixth of
the time; freezing keeps a worker's collections off these objects, which would copy the pages that it shares."""

import gc
import importlib

gc.disable()
try:
    importlib.import_module("flow_dpo.workers.process_actor")
finally:
    gc.freeze()
    gc.enable()
