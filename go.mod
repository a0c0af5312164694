module github.com/thinkube/infra

go 1.24.0

require (
	github.com/canonical/lxd v0.0.0-20241209155119-76da976c6ee7
	github.com/stretchr/testify v1.12.1
	gopkg.in/yaml.v3 v3.0.1
)

require go.yaml.in/yaml/v3 v3.0.5 // indirect
