"""GetConsoleOutput, from what a machine's start and its user data wrote. moto tells the same story of every instance."""
from .state import INSTANCES

LIMIT = 65536  # what EC2 keeps


def hook():
    from moto.core.responses import ActionResult
    from moto.core.utils import utcnow
    from moto.ec2.responses.general import General
    from moto.ec2.utils import Base64EncodedString

    def get_console_output(self):
        id = self._get_param("InstanceId")
        self.ec2_backend.get_instance(id)  # refuses an id that there is not
        text = INSTANCES[id].console()[-LIMIT:] if id in INSTANCES else ""
        return ActionResult({"InstanceId": id, "Timestamp": utcnow(), "Output": Base64EncodedString.from_raw_string(text)})
    General.get_console_output = get_console_output
