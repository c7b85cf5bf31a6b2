package walrust

import _ "embed"

//go:embed walrust_linux_arm64.so
var library []byte

// memfd_create(2)
const memfdCreate = 279
