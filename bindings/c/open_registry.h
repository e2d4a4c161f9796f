// The process's one registry; which backend stands behind it is the library's (or a test's) choice.
#pragma once

#include "../../csrc/embed/registry.h"

namespace stagebeam::embed {

// Never destroyed: a thread of the host may call until the process is gone.
Registry& open_registry();

}  // namespace stagebeam::embed
