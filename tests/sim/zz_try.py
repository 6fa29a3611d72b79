import sys, time, os
from dataclasses import replace
from tests.sim.core_world import draw_core, run_core_plan, run_core
seed=int(sys.argv[1]); quiet="q" in sys.argv
for s in range(seed, seed+int(os.environ.get("N","1"))):
    t=time.time(); c=time.process_time()
    plan=draw_core(s)
    if quiet: plan=replace(plan, faults=[], operations=[], spike=0.0, loss=0.0, duplication=0.0)
    if "prof" in sys.argv:
        import cProfile,pstats
        pr=cProfile.Profile(); pr.enable()
    r=run_core_plan(plan, trace=False)
    if "prof" in sys.argv:
        pr.disable(); pstats.Stats(pr).sort_stats("tottime").print_stats(25)
    print(s, plan.voters, plan.spares, plan.groups, plan.faults, r.failure or "ok", r.steps, dict(r.counts), time.time()-t, time.process_time()-c, flush=True)
