// SPDX-License-Identifier: Apache-2.0

package lxdapi

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/canonical/lxd/shared/api"
)

// ClusterNameKey is where this collection keeps a cluster's name: LXD itself has none.
const ClusterNameKey = "user.thinkube.cluster"

// Member is a cluster member.
type Member struct {
	Name          string   `json:"name"`
	Address       string   `json:"address"` // host:port
	Status        string   `json:"status"`  // LXD's word: Online, Offline, Evacuated, Blocked
	Online        bool     `json:"online"`
	Message       string   `json:"message,omitempty"`
	Roles         []string `json:"roles"` // sorted; those that LXD gives by itself included
	Voter         bool     `json:"voter"` // counts for the quorum of the database
	Groups        []string `json:"groups"`
	FailureDomain string   `json:"failure_domain"`
	Description   string   `json:"description"`
	Architecture  string   `json:"architecture,omitempty"`
}

// Quorum says how many voters the cluster's database can still lose before it stops.
type Quorum struct {
	Voters       int `json:"voters"`
	OnlineVoters int `json:"online_voters"`
	Margin       int `json:"margin"` // voters that can be lost; negative: the database stands still
}

// automaticRoles are those that LXD gives and takes by itself (lxd/db/node.go, ClusterRoles).
var automaticRoles = []string{"database", "database-leader", "database-standby", "database-voter"}

// ManualRoles picks the roles that people give.
func ManualRoles(roles []string) []string {
	manual := []string{}

	for _, role := range roles {
		if !slices.Contains(automaticRoles, role) {
			manual = append(manual, role)
		}
	}

	slices.Sort(manual)

	return manual
}

// Members reads the cluster's members in the order of their names; a server in no cluster has none.
func (s *Server) Members() ([]Member, error) {
	if !s.Clustered() {
		return nil, nil
	}

	var answers []api.ClusterMember

	_, err := s.Get("/1.0/cluster/members?recursion=1", &answers)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's members: %w", err)
	}

	members := make([]Member, 0, len(answers))
	for _, answer := range answers {
		members = append(members, makeMember(answer))
	}

	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })

	return members, nil
}

func makeMember(answer api.ClusterMember) Member {
	member := Member{
		Name: answer.ServerName, Address: strings.TrimPrefix(answer.URL, "https://"), Status: answer.Status,
		// An evacuated member answers: it only runs no instances.
		Online: answer.Status == "Online" || answer.Status == "Evacuated", Message: answer.Message,
		Roles: slices.Sorted(slices.Values(answer.Roles)), Groups: slices.Sorted(slices.Values(answer.Groups)),
		FailureDomain: answer.FailureDomain, Description: answer.Description, Architecture: answer.Architecture,
	}
	if member.Online {
		member.Message = "" // "Fully operational" says nothing that status does not
	}

	// LXD 5.0 calls voters "database"; newer versions tell leader, voters and standbys apart.
	member.Voter = slices.Contains(member.Roles, "database") || slices.Contains(member.Roles, "database-voter") ||
		slices.Contains(member.Roles, "database-leader")

	return member
}

// MakeQuorum counts the voters. A database of n voters needs n/2+1 of them.
func MakeQuorum(members []Member) Quorum {
	var quorum Quorum

	for _, member := range members {
		if !member.Voter {
			continue
		}

		quorum.Voters++

		if member.Online {
			quorum.OnlineVoters++
		}
	}

	quorum.Margin = quorum.OnlineVoters - (quorum.Voters/2 + 1)

	return quorum
}

// ConfigText gives one key of the server's own configuration.
func (s *Server) ConfigText(key string) string {
	text, _ := s.Info.Config[key].(string)

	return text
}

// Holdings lists what a server holds beyond a fresh one, in words: instances, pools, networks and the like. With a
// member's name it lists only what lies on that cluster member.
func (s *Server) Holdings(member string) ([]string, error) {
	held := []string{}

	for _, kind := range holdingKinds {
		if member != "" && !kind.onMember {
			continue
		}

		var objects []holding

		_, err := s.Get(kind.path, &objects)
		if err != nil {
			return nil, fmt.Errorf("reading %ss: %w", kind.word, err)
		}

		for _, object := range objects {
			name := object.Name
			if name == "" {
				name = object.Fingerprint
			}

			switch {
			case member != "" && object.Location != member,
				kind.word == "network" && !object.Managed,
				kind.word == "project" && name == "default",
				kind.word == "profile" && name == "default" && len(object.Config)+len(object.Devices) == 0:
				continue
			}

			held = append(held, fmt.Sprintf("%s %q", kind.word, name))
		}
	}

	if member == "" {
		return held, nil
	}

	volumes, err := s.customVolumes(member)

	return append(held, volumes...), err
}

type holding struct {
	Name        string         `json:"name"`
	Fingerprint string         `json:"fingerprint"`
	Location    string         `json:"location"`
	Managed     bool           `json:"managed"`
	Type        string         `json:"type"`
	Config      map[string]any `json:"config"`
	Devices     map[string]any `json:"devices"`
}

var holdingKinds = []struct {
	word, path string
	onMember   bool // lies on one member of a cluster
}{
	{"instance", "/1.0/instances?recursion=1&all-projects=true", true},
	{"storage pool", "/1.0/storage-pools?recursion=1", false},
	{"network", "/1.0/networks?recursion=1", false},
	{"image", "/1.0/images?recursion=1", false},
	{"project", "/1.0/projects?recursion=1", false},
	{"profile", "/1.0/profiles?recursion=1", false},
}

// customVolumes lists the volumes that people made on a member; they are lost with it.
func (s *Server) customVolumes(member string) ([]string, error) {
	var pools []holding

	_, err := s.Get("/1.0/storage-pools?recursion=1", &pools)
	if err != nil {
		return nil, fmt.Errorf("reading storage pools: %w", err)
	}

	var held []string

	for _, pool := range pools {
		var volumes []holding

		// Filtering here and not in the request: servers differ in what they filter by.
		_, err := s.Get(Path("storage-pools", pool.Name, "volumes")+"?recursion=1&target="+url.QueryEscape(member), &volumes)
		if err != nil {
			return nil, fmt.Errorf("reading the volumes of storage pool %q: %w", pool.Name, err)
		}

		for _, volume := range volumes {
			if volume.Type == "custom" && (volume.Location == member || volume.Location == "") {
				held = append(held, fmt.Sprintf("volume %q in storage pool %q", volume.Name, pool.Name))
			}
		}
	}

	return held, nil
}
