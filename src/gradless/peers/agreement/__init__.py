"""One PBFT instance a step: the same value at every honest peer, whatever the network does and f of n peers say.

A state machine without clock, sockets and threads: messages and the time go in, messages and decisions come out; what
it signs is written to a log of votes before. `core` has the sequence of steps, `instance` one of them.
"""

from gradless.peers.agreement.core import Agreement as Agreement
from gradless.peers.agreement.instance import Timing as Timing
from gradless.peers.agreement.voice import Outgoing as Outgoing
