// SPDX-License-Identifier: Apache-2.0

package lxdcluster

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"syscall"
	"time"
)

// reachTimeout bounds one attempt to connect: a host in the same network answers in milliseconds, a firewall that
// drops packets never does.
const reachTimeout = 5 * time.Second

// probe connects to a server's address and looks at its certificate and its clock.
func probe(ctx context.Context, address string) Probe {
	result, _, err := connect(ctx, address)
	if err != nil {
		return Probe{Problem: err.Error()}
	}

	return result
}

// probeAny gives the first address that answers, or the last problem.
func probeAny(ctx context.Context, addresses []string) (string, Probe) {
	result := Probe{Problem: "the token names no address"}

	for _, address := range addresses {
		result = probe(ctx, address)
		if result.Problem == "" {
			return address, result
		}

		result.Problem = address + ": " + result.Problem
	}

	return "", result
}

// connect asks a server for its first page. The certificate is not checked here: the caller compares its fingerprint
// with the one that the cluster or the token gave. Nothing secret is sent.
func connect(ctx context.Context, address string) (Probe, string, error) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()

	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // pinned by fingerprint instead
		DisableKeepAlives: true,
	}
	defer transport.CloseIdleConnections()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
	if err != nil {
		return Probe{}, "", err
	}

	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return Probe{}, "", plainly(err)
	}

	_ = response.Body.Close()

	certificate := response.TLS.PeerCertificates[0]
	sum := sha256.Sum256(certificate.Raw)
	result := Probe{Fingerprint: hex.EncodeToString(sum[:])}

	// The Date header has whole seconds (RFC 9110 section 6.6.1): the middle of that second is the best guess.
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		result.Skew = time.Until(date.Add(500 * time.Millisecond)).Round(time.Second).Seconds()
	}

	return result, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Raw})), nil
}

// reachable tells why this host cannot connect to an address, or gives an empty text. Nobody need listen there yet: a
// refused connection shows that packets arrive and return.
func reachable(ctx context.Context, address string) string {
	dialer := net.Dialer{Timeout: reachTimeout}

	connection, err := dialer.DialContext(ctx, "tcp", address)
	if err == nil {
		_ = connection.Close()

		return ""
	}

	if errors.Is(err, syscall.ECONNREFUSED) {
		return ""
	}

	return plainly(err).Error()
}

// plainly says what happened without the request around it.
func plainly(err error) error {
	var timeout net.Error

	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused: nobody listens there")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errors.New("no route to it")
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer within %s: a firewall may drop the packets", reachTimeout)
	}

	return err
}
