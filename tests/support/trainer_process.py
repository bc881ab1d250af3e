"""`python -m tests.support.trainer_process`: the Trainer with the scripted job."""

from hivemind.servers.common.server import main
from hivemind.servers.trainer.__main__ import build
from hivemind.servers.trainer.settings import TrainerSettings
from tests.support.trainer_rig import CHECK, JOB

if __name__ == "__main__":
    main(TrainerSettings, "trainer", lambda settings: build(settings, job=JOB, check=CHECK))
