package store

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// proxyOf returns what decides on the proxy of a request. Ganeti gives its
// scripts no proxy variables, so sites set them in the settings files; where
// environ has none the process's own environment counts.
func proxyOf(environ []string) func(*http.Request) (*url.URL, error) {
	vars := map[string]string{}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		// The lower case name wins, as in curl.
		if lower := strings.ToLower(name); vars[lower] == "" || name == lower {
			vars[lower] = value
		}
	}
	if vars["http_proxy"] == "" && vars["https_proxy"] == "" && vars["all_proxy"] == "" {
		return http.ProxyFromEnvironment
	}
	return func(req *http.Request) (*url.URL, error) {
		proxy := vars[req.URL.Scheme+"_proxy"]
		if proxy == "" {
			proxy = vars["all_proxy"]
		}
		if proxy == "" || isDirect(req.URL.Hostname(), vars["no_proxy"]) {
			return nil, nil
		}
		return parseProxy(req.URL.Scheme, proxy)
	}
}

func parseProxy(scheme, proxy string) (*url.URL, error) {
	if !strings.Contains(proxy, "://") {
		proxy = "http://" + proxy
	}
	u, err := url.Parse(proxy)
	if err != nil || u.Host == "" {
		return nil, fmt.Errorf("the setting %s_proxy is not a URL", scheme)
	}
	return u, nil
}

// isDirect tells whether a host is reached without the proxy: this machine, and
// what no_proxy lists: domains with all below them, addresses, prefixes, or *.
func isDirect(host, noProxy string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	ip, _ := netip.ParseAddr(host)
	if host == "localhost" || ip.IsLoopback() {
		return true
	}
	for entry := range strings.SplitSeq(strings.ToLower(noProxy), ",") {
		entry = strings.TrimSpace(entry)
		if name, _, err := net.SplitHostPort(entry); err == nil {
			entry = name
		}
		if prefix, err := netip.ParsePrefix(entry); err == nil && ip.IsValid() && prefix.Contains(ip.Unmap()) {
			return true
		}
		domain := strings.TrimPrefix(strings.TrimPrefix(entry, "*"), ".")
		if entry == "*" || domain != "" && (host == domain || strings.HasSuffix(host, "."+domain)) {
			return true
		}
	}
	return false
}
